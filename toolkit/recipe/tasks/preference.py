"""The sections of preference tuning: from pairs of answers (DPO, ORPO, SimPO, reward models) and from judged ones (KTO)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from toolkit.errors import RecipeError
from toolkit.recipe.numbers import Positive
from toolkit.recipe.tasks.base import Direction, Task

if TYPE_CHECKING:
    from toolkit.recipe.recipe import Recipe

REWARDS: dict[str, Direction] = {
    "rewards/chosen": "rises",
    "rewards/rejected": "falls",
    "rewards/margins": "rises",
    "rewards/accuracies": "rises",
}

Above = Annotated[float, Field(gt=0.0)]


class _Preferences(Task):
    """What all of them have in common: a prompt, which the rows of pairs may also have inside both answers."""

    cuts: ClassVar[frozenset[str]] = frozenset({"tensor", "sequence"})
    settings: ClassVar[frozenset[str]] = Task.settings | {
        "beta",
        "loss",
        "gamma",
        "desirable_weight",
        "undesirable_weight",
    }

    prompt_field: str = "prompt"
    """Column with what is answered: text, or a list of messages."""

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Mean loss, mean rewards of both kinds of answers, how far they are apart, and how often the better one has more."""
        return {"loss": "falls", **REWARDS}


class _Answering(Task):
    """Models that answer."""

    sample_prompt: str | None = None
    """A prompt answered before and after training, to look at."""
    sample_tokens: Positive = 48
    """Longest answer to `sample_prompt`, in tokens."""


class _Pairs(_Preferences):
    """Two answers to one prompt, of which one is better."""

    chosen_field: str = "chosen"
    """Column with the better answer: text, or a list of messages; with the prompt in front of it where both answers have it and no column does."""
    rejected_field: str = "rejected"
    """Column with the worse answer, in the same form."""


class DPO(_Answering, _Pairs):
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290): raise the chosen answer's log-probability above the rejected one's, against those of the model that training began with."""

    implementation: ClassVar[str] = "toolkit.tasks.preferences.dpo:DPOTask"

    reads_reference: ClassVar[bool] = True

    name: Literal["dpo"] = "dpo"
    """Direct preference optimization."""
    beta: Above = 0.1
    """How much a log-probability's distance from the reference counts: reward = beta x log(policy / reference); IPO's tau."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """"sigmoid" as in the paper, "ipo" (arXiv 2310.12036, per token), "hinge" (SLiC-HF, arXiv 2305.10425), "robust" to flipped pairs (arXiv 2403.00409)."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of the pairs thought to be flipped, for "sigmoid" (conservative DPO) and "robust"."""

    @model_validator(mode="after")
    def _smooths_where_it_counts(self) -> DPO:
        if self.label_smoothing and self.loss in ("ipo", "hinge"):
            raise RecipeError(
                f"task.label_smoothing={self.label_smoothing} with task.loss={self.loss!r}, which has none",
                expected="0, or task.loss='sigmoid' or 'robust'",
                do="set task.label_smoothing=0",
            )
        if self.loss == "robust" and not self.label_smoothing:
            raise RecipeError(
                "task.loss='robust' with task.label_smoothing=0: it would be 'sigmoid'",
                expected="the share of pairs that are thought to be flipped, above 0 and below 0.5",
                do="set task.label_smoothing, to 0.1 for instance",
            )
        return self


class ORPO(_Answering, _Pairs):
    """Odds ratio preference optimization (Hong et al. 2024, arXiv 2403.07691): learn the chosen answer, and raise its odds above the rejected one's; without a reference."""

    implementation: ClassVar[str] = "toolkit.tasks.preferences.dpo:ORPOTask"

    name: Literal["orpo"] = "orpo"
    """Odds ratio preference optimization."""
    beta: Above = 0.1
    """Weight of the odds ratio's loss beside that of the chosen answer; the paper's lambda."""


class SimPO(_Answering, _Pairs):
    """Simple preference optimization (Meng et al. 2024, arXiv 2405.14734): raise the chosen answer's log-probability per token above the rejected one's by a margin; without a reference."""

    implementation: ClassVar[str] = "toolkit.tasks.preferences.dpo:SimPOTask"

    name: Literal["simpo"] = "simpo"
    """Simple preference optimization."""
    beta: Above = 2.0
    """Reward = beta x log-probability per token."""
    gamma: Annotated[float, Field(ge=0.0)] = 1.0
    """By how much the chosen answer's reward is to be higher; the paper takes 0.2 to 0.8 of beta."""


class KTO(_Answering, _Preferences):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv 2402.01306): from answers that are good or bad, not paired; against the model that training began with."""

    implementation: ClassVar[str] = "toolkit.tasks.preferences.kto:KTOTask"

    reads_reference: ClassVar[bool] = True

    name: Literal["kto"] = "kto"
    """Kahneman-Tversky optimization."""
    completion_field: str = "completion"
    """Column with the answer: text, or a list of messages."""
    label_field: str = "label"
    """Column that says whether the answer is good: true or false, 1 or 0."""
    beta: Above = 0.1
    """How much a log-probability's distance from the reference counts: reward = beta x log(policy / reference)."""
    desirable_weight: Above = 1.0
    """Weight of good answers; the paper wants good x their weight : bad x theirs between 1 : 1 and 4 : 3."""
    undesirable_weight: Above = 1.0
    """Weight of bad answers."""

    def check_with(self, recipe: Recipe) -> None:
        """The baseline is made inside packed sequences."""
        super().check_with(recipe)
        if not recipe.data.packing:
            raise RecipeError(
                "data.packing=False with task.name='kto'",
                expected="True: rewards are measured against answers to other prompts, taken from the same sequence",
                do="set data.packing=True, with a batch.sequence_length that holds several examples",
            )


class RewardModel(_Pairs):
    """Give answers a number, higher for the better one of each pair (Bradley-Terry, as in Llama 2, arXiv 2307.09288); the export is a sequence classifier with one output."""

    implementation: ClassVar[str] = "toolkit.tasks.preferences.reward_model:RewardModelTask"
    settings: ClassVar[frozenset[str]] = _Pairs.settings | {"centering"}

    name: Literal["reward_model"] = "reward_model"
    """Reward model."""
    margin_field: str | None = None
    """Column with a number by which the chosen answer's reward is to be higher; None: none."""
    centering: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of (chosen + rejected)^2, which keeps rewards around zero (arXiv 2312.09244); 0.01 is usual."""
