"""What each recipe field may do when a run is resumed: the one table of all of them. Imports no torch.

A field that is not in the table fails a test, so a new one is classified when it is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel

from toolkit.recipe import Recipe
from toolkit.recipe.dotted import CHOICES
from toolkit.recipe.optimizers import DEFAULTS, optimizer_parameters

Flat = dict[str, Any]
"""Dotted field name -> JSON-able value, of every field of a recipe."""


class Role(Enum):
    """What a changed field means for a run that goes on."""

    IDENTITY = "decides what step N is: a change is refused"
    CONTENT = "says where to find something: what is found there is compared, not the name"
    SETTING = "holds from the next step on: a change is said"
    PLACEMENT = "says how or where the same numbers are computed, up to what dropout draws: a change is said"
    SURROUNDING = "changes nothing about the model or what is kept of it"


_TABLE: dict[Role, str] = {
    Role.IDENTITY: """
        model.weights data.streaming data.shuffle data.group_by_length data.packing task.name tuning.name batch.global_size
        batch.sequence_length
        optimizer.type optimizer.momentum optimizer.centered optimizer.initial_accumulator_value seed
        """,
    Role.CONTENT: """
        model.path model.architecture model.config model.tokenizer
        data.train data.evaluation data.evaluation_examples data.split data.evaluation_split data.subset
        data.max_examples data.overlong data.unreadable
        """,
    Role.SETTING: """
        model.dropout model.batch_norm
        optimizer.learning_rate optimizer.weight_decay optimizer.max_grad_norm optimizer.ema_decay optimizer.betas optimizer.eps
        optimizer.nesterov optimizer.dampening optimizer.alpha optimizer.lr_decay optimizer.adam_learning_rate
        schedule.type schedule.warmup_steps schedule.min_ratio schedule.decay_steps schedule.power schedule.gamma
        schedule.step_size schedule.milestones schedule.peak_fraction schedule.start_ratio schedule.patience
        precision.dtype precision.accumulation_dtype precision.communication_dtype
        precision.master_dtype precision.state_dtype
        precision.initial_scale_power precision.loss_scale_window precision.hysteresis precision.min_loss_scale
        checkpoint.every_steps checkpoint.keep checkpoint.keep_best checkpoint.export checkpoint.export_dtype checkpoint.merge
        evaluation.every_steps evaluation.max_sequences evaluation.metric evaluation.early_stopping_patience
        tracking.tensorboard tracking.trackers tracking.project
        steps epochs
        """,
    Role.PLACEMENT: """
        model.attention model.kernels model.compile model.activation_checkpointing model.activation_offload model.mlp_tiles
        batch.micro_size optimizer.implementation precision.tf32
        parallel.zero_stage parallel.offload_optimizer parallel.offload_ratio parallel.offload_param
        parallel.nvme_path
        parallel.reduce_bucket_size parallel.overlap_comm parallel.param_persistence_threshold parallel.pipeline
        parallel.tensor parallel.sequence
        """,
    Role.SURROUNDING: """
        data.prefetch data.workers launch.devices launch.hosts launch.device launch.memory_check launch.timeout_s launch.host_timeout_s note
        parallel.auto batch.auto_micro_size
        """,
}
ROLES: dict[str, Role] = {name: role for role, names in _TABLE.items() for name in names.split()}
"""Of the fields of all sections but those that are of one of several kinds, which say it themselves; see `role_of`."""
_OF_CHOICES = {"task": Role.CONTENT, "tuning": Role.IDENTITY}
"""What the fields of such a section decide, other than its settings."""

DATA_IDENTITY = ("data.streaming", "data.shuffle", "data.group_by_length", "data.packing")
"""Fields of Role.IDENTITY that --resume_changed_data lets change: which examples come next, not what a step is."""

DEPENDS_ON_MICRO_BATCHES = "the batches are the same; dropout and noise are drawn anew"
"""What a change of batch.micro_size does."""


def role_of(name: str) -> Role:
    """What a change of the field with the dotted `name` means."""
    if name in ROLES:
        return ROLES[name]
    section, _, field = name.partition(".")
    kinds = [kind for kind in CHOICES[section].kinds.values() if field in kind.model_fields]
    if any(field in kind.identity for kind in kinds):
        return Role.IDENTITY
    return Role.SETTING if any(field in kind.settings for kind in kinds) else _OF_CHOICES[section]


def flatten(recipe: Recipe) -> Flat:
    """Every field of `recipe`."""
    flat: Flat = {}
    values = recipe.model_dump(mode="json")
    for name in type(recipe).model_fields:
        if isinstance(getattr(recipe, name), BaseModel):
            flat |= {f"{name}.{key}": inner for key, inner in values[name].items()}
        else:
            flat[name] = values[name]
    return flat


def flatten_json(values: Mapping[str, Any]) -> Flat:
    """The same of a recipe's JSON, also of one that an older or newer version wrote."""
    flat: Flat = {}
    for name, value in values.items():
        if name in Recipe.model_fields and isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


@dataclass(frozen=True)
class Change:
    """A field that differs from the run that is resumed."""

    name: str
    before: Any
    now: Any

    @property
    def role(self) -> Role:
        """What the change means."""
        return role_of(self.name)

    def refusal(self) -> str:
        """For an error."""
        return f"{self.name}={self.now!r} (the run has {self.before!r})"

    def line(self) -> str:
        """For the screen."""
        about = f" ({DEPENDS_ON_MICRO_BATCHES})" if self.name == "batch.micro_size" else ""
        return f"{self.name} {self.before!r} -> {self.now!r}{about}"


def changes(stored: Mapping[str, Any], recipe: Recipe) -> list[Change]:
    """Fields of `recipe` whose value differs from that in `stored`, in the recipe's order.

    A field that `stored` does not have did not exist when it was written, and counts as unchanged.
    """
    before, now = _with_defaults(stored), _with_defaults(flatten(recipe))
    return [Change(name, before[name], now[name]) for name in now if name in before and before[name] != now[name]]


def _with_defaults(flat: Mapping[str, Any]) -> Flat:
    """None of an optimizer's parameter as the default it stands for: writing it out is no change."""
    given = {name.removeprefix("optimizer."): value for name, value in flat.items() if name.startswith("optimizer.")}
    own = optimizer_parameters(given["type"], given) if given.get("type") in DEFAULTS else {}
    filled = {f"optimizer.{name}": list(value) if isinstance(value, tuple) else value for name, value in own.items()}
    return {**flat, **filled}


def refused(found: list[Change], *, streaming: bool) -> Iterator[Change]:
    """Those of `found` that a resumed run must not have.

    A stream is not encoded in advance, so how its rows are read cannot be compared beyond the first: there the fields
    that say so count by themselves.
    """
    for change in found:
        by_name = streaming and change.name.startswith(("data.overlong", "task."))
        if change.role is Role.IDENTITY or (change.role is Role.CONTENT and by_name):
            yield change


def is_about_data(name: str) -> bool:
    """Whether --resume_changed_data lets the field `name` change."""
    return name in DATA_IDENTITY or (role_of(name) is Role.CONTENT and not name.startswith("model."))
