"""Rules about the batch triple and how the ranks are divided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from toolkit.ds_config.rules.context import Context, Fault, rule
from toolkit.ds_config.schema_keys import LARGEST
from toolkit.ds_config.schema_top import BATCH_KEYS
from toolkit.ds_config.target import Target
from toolkit.ds_config.values import exact

GLOBAL, MICRO, STEPS = BATCH_KEYS


@rule(
    "batch-missing",
    looks_at=", ".join(BATCH_KEYS),
    why="DeepSpeed needs the global or the micro size and stops with an AssertionError without both (runtime/config.py)",
)
def batch_missing(context: Context) -> Iterator[Fault]:
    if not context.has(GLOBAL) and not context.has(MICRO):
        yield (
            MICRO,
            f"neither {GLOBAL} nor {MICRO} is written",
            "at least one of the two",
            f"write {MICRO!r}, the sequences that one rank takes at once",
        )


@rule(
    "batch-identity",
    looks_at=", ".join((*BATCH_KEYS, "sequence_parallel_size")),
    why="DeepSpeed asserts global = micro x accumulation x ranks, where ranks are the world divided by "
    "sequence_parallel_size; a missing one is derived by integer division first, so the assertion names other numbers",
)
def batch_identity(context: Context) -> Iterator[Fault]:
    size, micro, steps = (context.number(key) for key in BATCH_KEYS)
    ranks, known = _data_ranks(context)
    if size is None or size != int(size) or size > LARGEST:
        return
    for key, value in ((MICRO, micro), (STEPS, steps)):
        if value is not None and (value <= 0 or value != int(value) or value > LARGEST):
            return  # the schema names it
        if context.has(key) and value is None:
            return  # "auto" without a value, or no number: nothing to compare with
    per_step = int((micro or 1) * (steps or 1) * ranks)
    written = [f"{key}={exact(value)}" for key, value in ((MICRO, micro), (STEPS, steps)) if value is not None]
    factors = " x ".join([*written, f"{ranks} ranks"] if known else written)
    is_exact = known and micro is not None and steps is not None
    if not factors or (size == per_step if is_exact else size % per_step == 0):
        return
    nearest = f"{per_step}" if is_exact else _nearest(int(size), per_step)
    relation = "is not" if is_exact else "is not a multiple of"
    what = f"{GLOBAL}={exact(size)} {relation} {factors} = {per_step}"
    yield GLOBAL, what, nearest, f"set {GLOBAL} to {nearest}, or change the other two"


def _data_ranks(context: Context) -> tuple[int, bool]:
    """Ranks that the batch is divided over in DeepSpeed's arithmetic, and whether that is known."""
    if context.target is None or _is_pipeline_of_unknown_depth(context, context.target):
        return 1, False
    # Tensor parallel ranks count in full: DeepSpeedConfig sees no mpu (DeepSpeed 0.19.8, runtime/config.py).
    return max(1, context.target.world_size // (context.target.model_ranks * _sequence_ranks(context))), True


def _is_pipeline_of_unknown_depth(context: Context, target: Target) -> bool:
    """The training script says how many stages share a micro-batch, no key of the JSON does."""
    return isinstance(context.raw("pipeline"), Mapping) and target.model_ranks == 1


def _sequence_ranks(context: Context) -> int:
    return max(1, int(context.number("sequence_parallel_size", 1) or 1))


def _nearest(size: int, unit: int) -> str:
    lower = size // unit * unit
    return " or ".join(str(value) for value in (lower, lower + unit) if value)


@rule(
    "parallel-degrees",
    looks_at="sequence_parallel_size, data_parallel_size, tensor_parallel.autotp_size",
    why="ranks are arranged in a grid, so each degree divides the world size and the two written ones multiply to it",
)
def parallel_degrees(context: Context) -> Iterator[Fault]:
    if context.target is None:
        return
    world = context.target.world_size
    for where in ("sequence_parallel_size", "tensor_parallel.autotp_size"):
        degree = context.number(where)
        if degree and world % degree:
            yield (
                where,
                f"{where}={exact(degree)} does not divide the world size {world}",
                f"a divisor of {world}",
                f"correct {where}",
            )
    data, sequence = context.number("data_parallel_size"), context.number("sequence_parallel_size")
    if data and sequence and data * sequence != world:
        what = (
            f"data_parallel_size={exact(data)} x sequence_parallel_size={exact(sequence)} is not the world size {world}"
        )
        yield "data_parallel_size", what, f"a product of {world}", "correct 'data_parallel_size'"


BATCH_RULES = (batch_missing, batch_identity, parallel_degrees)
