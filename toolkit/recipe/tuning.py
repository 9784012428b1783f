"""Which weights are trained: all of them, or low-rank adapters beside frozen ones."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from toolkit.errors import RecipeError
from toolkit.recipe.choice import Choice
from toolkit.recipe.numbers import Positive, Rate


class Tuning(Choice):
    """Which weights are trained."""

    section: ClassVar[str] = "tuning"
    kinds: ClassVar[dict[str, type[Any]]] = {}

    @property
    def keeps_base(self) -> bool:
        """Whether the model in training still has in it the one that it began with."""
        return False


class Full(Tuning):
    """Every weight of the model is trained."""

    name: Literal["full"] = "full"
    """All weights, or adapters."""


class LoRA(Tuning):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), by peft: y = W x + scale B A x, with W frozen and A, B trained."""

    settings: ClassVar[frozenset[str]] = frozenset({"dropout"})
    """Fields that may change while a run goes on; each of the others decides what its adapters are."""

    name: Literal["lora"] = "lora"
    """All weights, or adapters."""
    rank: Positive = 16
    """Rows of A, columns of B."""
    alpha: Annotated[float, Field(gt=0.0)] = 32.0
    """The scale is alpha / rank."""
    dropout: Rate = 0.0
    """Probability with which an entry of an adapter's input is dropped in training."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Linear layers that get an adapter: "all-linear" means every one but the output layer, else the ends of their names, such as q_proj v_proj."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv 2312.03732): a large rank learns as fast as a small one."""
    use_dora: bool = False
    """Train the length of each row of the weight besides (DoRA, Liu et al. 2024, arXiv 2402.09353); slower."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are trained whole beside the adapters and saved with them, by the ends of their names, such as embed_tokens; a new classification head always is."""
    initialisation: Literal["kaiming", "gaussian"] = "kaiming"
    """How A is drawn (B is zero): uniform within 1 / sqrt(inputs), or normal with deviation 1 / rank."""

    @property
    def keeps_base(self) -> bool:
        """With the adapters switched off, unless weights are trained beside them."""
        return not self.modules_to_save

    @field_validator("target_modules", "modules_to_save", mode="before")
    @classmethod
    def _several_names(cls, value: object) -> object:
        if isinstance(value, str) and value != "all-linear":
            raise ValueError(f'names in parentheses, each in quotes and with a comma after it: ("{value}",)')
        return value

    @model_validator(mode="after")
    def _has_a_target(self) -> LoRA:
        if not self.target_modules:
            raise RecipeError(
                "tuning.target_modules is empty",
                expected='"all-linear", or the ends of the names of some layers',
                do="set tuning.target_modules='all-linear', or leave it out",
            )
        twice = [name for name in self.modules_to_save if name in self.target_modules]
        if twice:
            raise RecipeError(
                f"tuning.modules_to_save and tuning.target_modules both have {', '.join(map(repr, twice))}",
                expected="a module that is trained whole, or one that has an adapter",
                do="remove it from one of the two",
            )
        return self
