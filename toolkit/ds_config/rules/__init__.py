"""The rule book: every check of a DeepSpeed configuration, each a small named object."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from toolkit.ds_config.config_file import FILE_RULES
from toolkit.ds_config.files import NAMING_RULES
from toolkit.ds_config.findings import Finding
from toolkit.ds_config.rules.accelerate import ACCELERATE_RULES
from toolkit.ds_config.rules.batch import BATCH_RULES
from toolkit.ds_config.rules.context import Context, Rule
from toolkit.ds_config.rules.inert import INERT_RULES
from toolkit.ds_config.rules.offload import OFFLOAD_RULES
from toolkit.ds_config.rules.optimizers import OPTIMIZER_RULES
from toolkit.ds_config.rules.precision import PRECISION_RULES
from toolkit.ds_config.rules.schedulers import SCHEDULER_RULES
from toolkit.ds_config.rules.stages import STAGE_RULES
from toolkit.ds_config.rules.trainer import TRAINER_RULES
from toolkit.ds_config.rules.trainer_arguments import TRAINER_ARGUMENT_RULES
from toolkit.ds_config.rules.whole_run import WHOLE_RUN_RULES
from toolkit.ds_config.rules.zero import ZERO_RULES
from toolkit.ds_config.schema import SCHEMA_RULES


def _file_rule(id: str, why: str) -> Rule:
    def check(context: Context) -> Iterator[Finding]:
        # DeepSpeed itself reads Hjson; only the Trainer and accelerate stop at it.
        harmless = id == "not-strict-json" and not context.for_hugging_face
        for found in context.file_findings:
            if found.rule == id:
                yield replace(found, severity="warning") if harmless else found

    return Rule(id, "the file", why, check, "warning" if id == "not-strict-json" else "error", None)


def _schema_rule(id: str, why: str) -> Rule:
    def check(context: Context) -> Iterator[Finding]:
        return (found for found in context.schema_findings if found.rule == id)

    return Rule(id, "every key", why, check)


RULES: tuple[Rule, ...] = (
    *(_file_rule(id, why) for id, why in {**FILE_RULES, **NAMING_RULES}.items()),
    *(_schema_rule(id, why) for id, why in SCHEMA_RULES.items()),
    *BATCH_RULES,
    *STAGE_RULES,
    *ZERO_RULES,
    *OFFLOAD_RULES,
    *PRECISION_RULES,
    *OPTIMIZER_RULES,
    *SCHEDULER_RULES,
    *INERT_RULES,
    *WHOLE_RUN_RULES,
    *TRAINER_RULES,
    *TRAINER_ARGUMENT_RULES,
    *ACCELERATE_RULES,
)
"""Every rule, in the order in which `toolkit rules` lists them."""

__all__ = ["RULES", "Context", "Rule"]
