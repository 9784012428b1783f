"""What a rule sees: the configuration, the machine it is for, and the Trainer's arguments, behind safe accessors.

Values of the wrong type are the schema's business: the accessors answer as if they were absent, so no rule can fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from toolkit.ds_config.edits import Edit
from toolkit.ds_config.findings import Finding, Role, Severity
from toolkit.ds_config.rules.trainer_values import ACCELERATE_STAGE, number_format, trainer_value
from toolkit.ds_config.schema import check_schema
from toolkit.ds_config.schema_formats import NUMBER_FORMATS
from toolkit.ds_config.schema_keys import is_number
from toolkit.ds_config.schema_lookup import offload_device
from toolkit.ds_config.schema_optimizers import optimizer_class
from toolkit.ds_config.target import Device, Target


@dataclass(frozen=True)
class Context:
    """One configuration under check. `target` and `training_args` are None where they are not known."""

    config: Mapping[str, Any]
    target: Target | None = None
    device: Device | None = None
    """The kind of device, where it is known."""
    training_args: Mapping[str, Any] | None = None
    accelerate: Mapping[str, Any] | None = None
    """What accelerate's file holds."""
    file_findings: tuple[Finding, ...] = ()
    """What is wrong with the files themselves, and how they name one another."""
    is_made: bool = False
    """accelerate makes `config` from the keys of its own file."""

    def raw(self, path: str) -> Any:
        """The value at the dotted `path` as written, None where there is none."""
        node: Any = self.config
        for name in path.split("."):
            if not isinstance(node, Mapping) or name not in node:
                return None
            node = node[name]
        return node

    def has(self, path: str) -> bool:
        """Whether the key at `path` is written, whatever its value."""
        parent, _, name = path.rpartition(".")
        node = self.raw(parent) if parent else self.config
        return isinstance(node, Mapping) and name in node

    def value(self, path: str) -> Any:
        """As `raw`, with "auto" replaced by what the Hugging Face Trainer fills in, as far as that is known."""
        written = self.raw(path)
        if written == "auto" and self.training_args is not None:
            filled = trainer_value(self.training_args, path)
            return written if filled is None else filled
        return written

    def number(self, path: str, default: float | None = None) -> float | None:
        """The number at `path`; `default` where it is absent, None where it is no number."""
        value = self.value(path)
        if value is None:
            return default
        return value if is_number(value) else None

    def flag(self, path: str, default: bool = False) -> bool:
        """The boolean at `path`; `default` where it is absent or no boolean."""
        value = self.value(path)
        return value if isinstance(value, bool) else default

    def text(self, path: str) -> str | None:
        """The string at `path`, None where there is none."""
        value = self.value(path)
        return value if isinstance(value, str) else None

    @property
    def for_hugging_face(self) -> bool:
        """Whether accelerate reads the configuration, by itself or for the Trainer."""
        return self.training_args is not None or self.accelerate is not None

    @cached_property
    def schema_findings(self) -> list[Finding]:
        """What the schema says about the configuration; computed once."""
        return check_schema(self.config, for_trainer=self.for_hugging_face)

    @property
    def stage(self) -> int:
        """ZeRO stage as DeepSpeed reads it: 0 where it is not written, accelerate's default where it is "auto"."""
        if self.raw("zero_optimization") is True:  # the form of old files
            return 1
        if self.raw("zero_optimization.stage") == "auto":
            return ACCELERATE_STAGE
        written = self.raw("zero_optimization.stage")
        # DeepSpeed takes "3" for 3, and the schema names it: nothing else follows from it.
        stage = (
            int(written)
            if isinstance(written, str) and written in STAGES
            else self.number("zero_optimization.stage", 0)
        )
        return int(stage) if stage in (0, 1, 2, 3) else 0

    @property
    def stage_is_searched(self) -> bool:
        """Whether DeepSpeed's autotuner tries the stages itself, since the file names none."""
        return self.flag("autotuning.enabled") and not self.has("zero_optimization")

    @property
    def zero(self) -> Mapping[str, Any]:
        """The zero_optimization section, empty where it is absent or malformed."""
        section = self.raw("zero_optimization")
        return section if isinstance(section, Mapping) else {}

    @property
    def dtype(self) -> str:
        """fp16, bf16 or fp32: the number format the engine casts the parameters to."""
        if self.flag("fp16.enabled"):
            return "fp16"
        if self.flag("bf16.enabled"):
            return "bf16"
        if self.training_args is None:
            return "bf16" if self.old_bf16 else "fp32"
        # accelerate adds the section of the arguments' format where the file has none (DeepSpeedPlugin.set_mixed_precision).
        asked = number_format(self.training_args)
        return "fp32" if self.has(asked) else asked

    @property
    def old_bf16(self) -> bool:
        """Whether "bfloat16", the old name, switches bf16 on. Beside "bf16" DeepSpeed does not look at it."""
        return self.flag("bfloat16.enabled") and not self.has("bf16")

    @property
    def dtype_source(self) -> str:
        """What switches `dtype` on, in words for a message."""
        if self.flag(f"{self.dtype}.enabled"):
            return f"{self.dtype}.enabled=true"
        return "bfloat16.enabled=true" if self.training_args is None else f"{self.dtype}=true among the arguments"

    @property
    def accumulation_dtype(self) -> str:
        """The number format gradients are summed in: data_types.grad_accum_dtype, by default the parameters'."""
        return NUMBER_FORMATS.get(self.text("data_types.grad_accum_dtype") or "", self.dtype)

    @property
    def clipping(self) -> float:
        """The gradient norm DeepSpeed clips to; 1.0 where nothing is written, 0 for never."""
        written = self.number("gradient_clipping", 1.0)
        return 1.0 if written is None else written

    @property
    def optimizer_offload(self) -> str:
        """none, cpu or nvme."""
        return offload_device(self.config, "offload_optimizer")

    @property
    def param_offload(self) -> str:
        """none, cpu or nvme."""
        return offload_device(self.config, "offload_param")

    @property
    def optimizer(self) -> str | None:
        """optimizer.type as written, None without an optimizer section."""
        return self.text("optimizer.type")

    @property
    def optimizer_class(self) -> str | None:
        """The class DeepSpeed builds for the optimizer section, None where it is not known."""
        params = self.raw("optimizer.params")
        if self.optimizer is None:
            return None
        return optimizer_class(
            self.optimizer,
            params if isinstance(params, Mapping) else {},
            offloads=self.optimizer_offload != "none",
        )

    @property
    def on_cpu(self) -> bool:
        """Whether the configuration is known to run on a CPU device."""
        return self.device == "cpu"


STAGES = ("0", "1", "2", "3")

Fault = tuple[str, str, str, str, *tuple[Severity | Edit, ...]]
"""(dotted key, what is wrong, values that work, what to do): a Finding without its rule's id. Behind it the severity, where
it is not the rule's usual one, and the edits that cure it, where that is certain."""


@dataclass(frozen=True)
class Rule:
    """One thing that is checked. `toolkit rules` lists them."""

    id: str
    looks_at: str
    """The keys it reads."""
    why: str
    """What goes wrong without it, and how that is known."""
    check: Callable[[Context], Iterator[Finding]]
    severity: Severity = "error"
    """The usual one; a finding's own severity counts."""
    role: Role | None = "config"
    """Of which file it speaks; None for every one."""


def rule(
    id: str, *, looks_at: str, why: str, severity: Severity = "error", role: Role = "config"
) -> Callable[[Callable[[Context], Iterator[Fault]]], Rule]:
    """Make a Rule of a generator of faults. `role` names the file whose keys they are."""

    def wrap(faults: Callable[[Context], Iterator[Fault]]) -> Rule:
        def check(context: Context) -> Iterator[Finding]:
            for where, what, expected, do, *own in faults(context):
                edits = tuple(part for part in own if isinstance(part, Edit))
                graver = [part for part in own if not isinstance(part, Edit)]
                yield Finding(where, id, what, expected, do, graver[0] if graver else severity, role, fix=edits)

        return Rule(id, looks_at, why, check, severity, role)

    return wrap
