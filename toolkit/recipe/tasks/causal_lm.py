"""The section of causal language modelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from toolkit.recipe.numbers import Positive, Rate
from toolkit.recipe.tasks.base import Direction, Task


class CausalLM(Task):
    """Predict each token from those before it: chat and instruction fine-tuning, and pretraining on plain text."""

    implementation: ClassVar[str] = "toolkit.tasks.language.causal_lm:CausalLMTask"
    cuts: ClassVar[frozenset[str]] = frozenset({"tensor", "pipeline", "sequence"})
    splits: ClassVar[bool] = True

    name: Literal["causal_lm"] = "causal_lm"
    """Causal language modelling."""
    train_on: Literal["assistant", "all"] = "assistant"
    """Tokens that carry loss: the assistant's (the completion's), or all of them."""
    messages_field: str = "messages"
    """Column with a list of {"role", "content"} messages, or JSON text of one; a column `tools` beside it is given to the chat template. An answer with "weight": 0 or "train": false is context only; messages after the last answer are left out. A row with none of these columns is read as Alpaca, ShareGPT, question and answer, ... if it has theirs; what was recognised is said."""
    prompt_field: str = "prompt"
    """Column with the prompt of a prompt/completion pair: text, or a list of messages."""
    completion_field: str = "completion"
    """Column with the completion of a prompt/completion pair: text, or a list of messages."""
    text_field: str = "text"
    """Column with plain text. Where a row has the columns of several forms (messages, a pair, plain text), the form counts whose column is named otherwise than by default."""
    label_smoothing: Rate = 0.0
    """Share of the target's probability spread evenly over all tokens (Szegedy et al. 2016, arXiv 1512.00567)."""
    neftune_alpha: Annotated[float, Field(ge=0.0)] = 0.0
    """Uniform noise added to the embeddings in training, scaled by alpha / sqrt(tokens x width) (NEFTune, arXiv 2310.05914); 0: none."""
    sample_prompt: str | None = None
    """A prompt answered before and after training, to look at."""
    sample_tokens: Positive = 48
    """Longest answer to `sample_prompt`, in tokens."""

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Mean loss of a token, and its exponential."""
        return {"loss": "falls", "perplexity": "falls"}
