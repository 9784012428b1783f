"""The section of vision-language tuning: chats with images in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from toolkit.errors import RecipeError
from toolkit.recipe.numbers import Positive, Rate
from toolkit.recipe.tasks.base import Direction, Task
from toolkit.recipe.tasks.scored import ROUGE, ScoredText

if TYPE_CHECKING:
    from toolkit.recipe.recipe import Recipe

MEASURED: Mapping[str, Mapping[str, Direction]] = {"exact_match": {"exact_match": "rises"}, "rouge": ROUGE}
"""All from 0 to 1."""


class ImageTextToText(ScoredText):
    """Answer in a conversation with images in it: visual chat, questions about images, captions."""

    implementation: ClassVar[str] = "toolkit.tasks.vision_language.image_text:ImageTextTask"
    measured: ClassVar[Mapping[str, Mapping[str, Direction]]] = MEASURED
    unmeasured: ClassVar[str] = "no answer is generated and measured by it"
    reads_media: ClassVar[bool] = True
    cuts: ClassVar[frozenset[str]] = frozenset({"tensor"})
    settings: ClassVar[frozenset[str]] = Task.settings | {"scores", "max_new_tokens"}
    identity: ClassVar[frozenset[str]] = frozenset({"freeze_vision_tower", "freeze_projector"})
    needs: ClassVar[Mapping[str, str]] = {**Task.needs, "max_new_tokens": "scores"}

    name: Literal["image_text_to_text"] = "image_text_to_text"
    """Vision-language tuning."""
    train_on: Literal["assistant", "all"] = "assistant"
    """Tokens that carry loss: the assistant's (the completion's, the caption's), or all of them but those of images."""
    messages_field: str = "messages"
    """Column with a list of {"role", "content"} messages, as for causal_lm; content may be a list of parts, {"type": "text", ...} and {"type": "image", ...}, and `<image>` in a text stands for an image, too. A row without it is read as ShareGPT, question and answer, ... if it has their columns."""
    prompt_field: str = "prompt"
    """Column with the prompt of a prompt/completion pair: text, or a list of messages."""
    completion_field: str = "completion"
    """Column with the completion of a prompt/completion pair: text, or a list of messages."""
    images_field: str = "images"
    """Column with the list of a row's images, in the order of their places in the text: {"bytes", "path"}, paths, or bytes. Images may stand in the parts of messages instead."""
    image_field: str = "image"
    """Column with the one image of a row, in the place of images_field."""
    text_field: str = "text"
    """Column with the caption of a row's images, where it has no messages, prompt or format of the field; "caption" is looked for as well."""
    instruction: str = ""
    """What captions answer, asked with the image, such as "Describe the image."; empty: the image alone."""
    freeze_vision_tower: bool = True
    """Leave the vision tower as it is (LLaVA's second stage, Liu et al. 2023, arXiv 2304.08485); adapters then leave it out, too."""
    freeze_projector: bool | None = None
    """Leave what is between vision tower and language model as it is. None: trained where all weights are, left beside adapters."""
    max_pixels: Positive = 50_000_000
    """Most pixels of an image; a larger one counts as unreadable and is never decoded. It is no size for the model: its image processor decides that."""
    label_smoothing: Rate = 0.0
    """Share of the target's probability spread evenly over all tokens (Szegedy et al. 2016, arXiv 1512.00567)."""
    neftune_alpha: Annotated[float, Field(ge=0.0)] = 0.0
    """Uniform noise added to the embeddings of text in training, scaled by alpha / sqrt(tokens x width) (NEFTune, arXiv 2310.05914); 0: none."""
    scores: tuple[Literal["exact_match", "rouge"], ...] = ()
    """What generated answers of the held-out set are measured by: the share that is the row's own, apart from capitals and white space at the ends, and ROUGE; empty: nothing is generated. Of a conversation the last answer that is learned, after all that stands before it."""
    max_new_tokens: Positive = 64
    """Longest generated answer, in tokens, for `scores`."""
    sample_prompt: str | None = None
    """A prompt without an image, answered before and after training, to look at."""
    sample_tokens: Positive = 48
    """Longest answer to `sample_prompt`, in tokens."""

    @model_validator(mode="after")
    def _check_scores(self) -> ImageTextToText:
        if self.scores and self.train_on == "all":
            raise RecipeError(
                f"task.scores={self.scores!r} with task.train_on='all'",
                expected="train_on='assistant': where everything is learned, nothing tells an answer from its question",
                do="set task.train_on='assistant', or task.scores=()",
            )
        return self

    def check_with(self, recipe: Recipe) -> None:
        """As for every task; and a tower without weights cannot be left as it is."""
        super().check_with(recipe)
        frozen = (
            "freeze_vision_tower" if self.freeze_vision_tower else "freeze_projector" if self.freeze_projector else ""
        )
        if frozen and recipe.model.weights == "random":
            part = "vision tower" if frozen == "freeze_vision_tower" else "projector"
            raise RecipeError(
                f"task.{frozen}=True with model.weights='random'",
                expected=f"a {part} that has learned something, or one that is trained",
                do=f"set task.{frozen}=False, or model.weights='pretrained'",
            )
