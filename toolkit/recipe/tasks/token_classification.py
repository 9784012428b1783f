"""The section of token classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from toolkit.recipe.numbers import Rate
from toolkit.recipe.tasks.base import Direction, Task

_ANY: dict[str, Direction] = {"loss": "falls", "accuracy": "rises", "majority_accuracy": "stays"}
_OF_ENTITIES: dict[str, Direction] = {"precision": "rises", "recall": "rises", "f1": "rises"}
_OF_TAGS: dict[str, Direction] = {"f1_macro": "rises"}


class TokenClassification(Task):
    """Tell the class of each word: names and other entities, parts of speech."""

    implementation: ClassVar[str] = "toolkit.tasks.labels.token_classification:TokenClassificationTask"
    cuts: ClassVar[frozenset[str]] = frozenset({"tensor", "pipeline", "sequence"})
    splits: ClassVar[bool] = True

    name: Literal["token_classification"] = "token_classification"
    """Token classification."""
    words_field: str = "words"
    """Column with the words of a text: a list of texts."""
    labels_field: str = "labels"
    """Column with the class of each word: a list of names or integers, as long as that of the words."""
    scheme: Literal["auto", "entities", "tags"] = "auto"
    """What the classes are: entities as B-NAME, I-NAME and O (also E-, S-: BIOES), measured by whole entities, or plain tags; "auto" tells by their names."""
    label_all_tokens: bool = False
    """Learn the class of a word on each of its tokens (of an entity, I- after B-), not on the first alone. Evaluated is the first."""
    label_smoothing: Rate = 0.0
    """Share of the target's probability spread evenly over all classes (Szegedy et al. 2016, arXiv 1512.00567)."""
    sample_prompt: str | None = None
    """A text, its words apart by spaces, whose classes are told before and after training, to look at."""

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Mean loss of a labelled token and the share of words told right; of entities precision, recall and F1, of tags the
        mean of their F1. With scheme "auto" all of them, until the data has been seen."""
        return {
            **_ANY,
            **(_OF_ENTITIES if self.scheme != "tags" else {}),
            **(_OF_TAGS if self.scheme != "entities" else {}),
        }
