"""Rules about what surrounds the steps of a run: where it ends, and what it loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from toolkit.ds_config.rules.context import Context, Fault, rule
from toolkit.ds_config.values import exact

LAST_PROFILED = 5
"""autotuning.end_profile_step where it is not written (autotuning/constants.py)."""


@rule(
    "autotuning-ends-run",
    looks_at="autotuning.enabled, autotuning.end_profile_step",
    why="with it the engine leaves the program, with exit code 0, in the step after end_profile_step, also where no tuner "
    "started it (engine.py, _autotuning_exit)",
    severity="warning",
)
def autotuning_ends_run(context: Context) -> Iterator[Fault]:
    last = context.number("autotuning.end_profile_step", LAST_PROFILED)
    if context.flag("autotuning.enabled") and last is not None:
        what = f"autotuning.enabled=true ends the run after {exact(last + 1)} steps, with exit code 0"
        do = "remove 'autotuning', unless `deepspeed --autotuning` starts it"
        yield "autotuning.enabled", what, "false in a run that trains", do


@rule(
    "universal-at-stage-0",
    looks_at="checkpoint.load_universal, zero_optimization.stage",
    why="at stage 0 nothing of a universal checkpoint reaches the optimizer, and load_checkpoint ends with AttributeError "
    "'update_lp_params' (engine.py)",
)
def universal_at_stage_0(context: Context) -> Iterator[Fault]:
    where = "checkpoint.load_universal"
    if context.flag(where) and context.stage == 0 and not isinstance(context.raw("pipeline"), Mapping):
        what = f"{where}=true at stage 0: loading fails"
        yield where, what, "stage 1, 2 or 3", "use stage 1; on one rank it costs nothing"


@rule(
    "pipeline-loading",
    looks_at="zero_optimization.pipeline_loading_checkpoint, zero_optimization.stage",
    why="loading a checkpoint asserts stage 3 for it (engine.py, _load_zero_checkpoint)",
)
def pipeline_loading(context: Context) -> Iterator[Fault]:
    where = "zero_optimization.pipeline_loading_checkpoint"
    if context.flag(where) and context.stage in (1, 2):
        what = f"{where}=true at stage {context.stage}: loading a checkpoint fails"
        yield where, what, "stage 3, or false", "remove 'pipeline_loading_checkpoint'"


WHOLE_RUN_RULES = (autotuning_ends_run, universal_at_stage_0, pipeline_loading)
