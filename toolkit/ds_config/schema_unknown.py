"""What is said about a key that DeepSpeed does not know: where it belongs, what it is called there, or that it is a comment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from toolkit.ds_config.edits import move
from toolkit.ds_config.findings import Finding
from toolkit.ds_config.misspelt import misspelt
from toolkit.ds_config.schema_keys import Same, Section
from toolkit.ds_config.schema_optimizers import CLASS_PARAMS
from toolkit.ds_config.schema_schedules import SCHEDULERS
from toolkit.ds_config.schema_top import DEEPSPEED_VERSION, TOP
from toolkit.ds_config.values import listing
from toolkit.errors import did_you_mean, first_few

SHORT_LISTING = 14
"""Sections with at most this many keys are listed whole in messages."""

MOST_NAMED = 20
"""So many unknown keys of one section are spoken of one by one; looking for the nearest name of each costs time."""

COMMENT_MARKS = ("_", "//", "#", "$")
COMMENT_NAMES = ("comment", "comments", "note", "notes")

MEANT: dict[str, str | Same] = {
    "load_universal_checkpoint": Same("load_universal", "checkpoint"),
    "seed": "the training script's own, e.g. the Trainer's seed",
    "max_grad_norm": Same("gradient_clipping", ""),
    "clip_grad": Same("gradient_clipping", ""),
    "grad_clip": Same("gradient_clipping", ""),
    "batch_size": '"train_batch_size" (of all ranks) or "train_micro_batch_size_per_gpu"',
    "micro_batch_size": Same("train_micro_batch_size_per_gpu", ""),
    "per_device_train_batch_size": Same("train_micro_batch_size_per_gpu", ""),
    "accumulation_steps": Same("gradient_accumulation_steps", ""),
    "learning_rate": Same("lr", "optimizer.params"),
    "warmup_steps": Same("warmup_num_steps", "scheduler.params"),
    "warmup_ratio": '"warmup_num_steps" in scheduler.params, in optimizer steps',
    "zero_stage": Same("stage", "zero_optimization"),
    "offload": '"offload_optimizer" or "offload_param" in zero_optimization',
    "fp32_allreduce": '"communication_data_type": "fp32"',
    "mixed_precision": '"bf16": {"enabled": true} or "fp16": {"enabled": true}',
    "gradient_checkpointing": "the model's own: gradient_checkpointing_enable(), or the Trainer's gradient_checkpointing",
    "cuda_visible_devices": "the launcher's --include, or the variable CUDA_VISIBLE_DEVICES",
    "monitor_config": '"tensorboard", "wandb", "csv_monitor" and "comet" at the top level',
    "comms_config": '"comms_logger"',
    "aio.thread_count": Same("intra_op_parallelism"),
    "scheduler.params.warmup_max_lr": '"lr" in optimizer.params, which this schedule scales',
    "scheduler.params.warmup_min_lr": '"warmup_min_ratio", a share of the optimizer\'s lr',
    "checkpoint_dir": "save_checkpoint's own argument",
    "save_checkpoint_steps": "the training script: DeepSpeed saves nothing by itself",
}
"""Names of other programs, older examples and other schedules, or dotted keys -> what does it in DeepSpeed."""


def is_comment(name: str) -> bool:
    """Whether a key is there for the reader: "_comment", "//", "$schema"."""
    return name.startswith(COMMENT_MARKS) or name.lower() in COMMENT_NAMES


def unknown_keys(path: str, names: Sequence[str], section: Section) -> Iterator[Finding]:
    """Findings about the keys `names` that stand in `section` and that it does not have; comments only where DeepSpeed refuses them."""
    spoken_of = [name for name in names if section.is_closed or not is_comment(name)]
    for name in spoken_of[:MOST_NAMED]:
        yield _unknown(path, name, section)
    rest = spoken_of[MOST_NAMED:]
    if rest:
        what = f"{len(rest)} more unknown keys {_place(path)}: {first_few([_short(name) for name in rest[:3]] + rest[3:], 3)}"
        yield Finding(join(path, rest[0]), "unknown-key", what, _known(path, section), "remove them")


def _unknown(path: str, name: str, section: Section) -> Finding:
    where = join(path, name)
    hint, do, to = _hint(path, name, section)
    what, fix = f"unknown key {_short(where)}{hint}", (move(where, to),) if to else ()
    return Finding(where, "unknown-key", what, _known(path, section), do, fix=fix)


def _hint(path: str, name: str, section: Section) -> tuple[str, str, str]:
    """What to say of the key, what to do about it, and the dotted key that it certainly means."""
    if is_comment(name):
        refused = f": DeepSpeed refuses every key it does not know {_place(path)}, comments too"
        return refused, "move it to the top level", name
    if name == last(path):
        switch = ' (and write "enabled")' if "enabled" in section.keys else ""
        return f": {path} is that section", f"remove it{switch}", ""
    same = [known for known in section.keys if known.lower() == name.strip().lower()]
    if same:
        hint = f" (did you mean {same[0]!r}? Names are matched exactly, case and spaces too)"
        return hint, f"rename it {same[0]!r}", join(path, same[0]) if len(same) == 1 else ""
    meant = MEANT.get(join(path, name)) or MEANT.get(name)
    if meant is not None:
        to = meant.beside(path) if isinstance(meant, Same) else ""
        return f" (DeepSpeed: {meant})", f"use {meant}", to
    places = _elsewhere(name, path)
    if len(places) == 1:
        place = _place(places[0])
        return f" (it belongs {place})", f"move it: it belongs {place}", join(places[0], name)
    near, certain = did_you_mean(name[:200], section.keys), misspelt(name, section.keys)
    return near, "rename it" if near else "remove it, or correct its name", join(path, certain) if certain else ""


def _known(path: str, section: Section) -> str:
    if len(section.keys) <= SHORT_LISTING:
        return listing(section.keys)
    return f"a key that DeepSpeed {DEEPSPEED_VERSION} reads {_place(path)}"


@cache
def _places() -> dict[str, list[str]]:
    """Key -> the dotted sections that have it."""
    places: dict[str, list[str]] = {}

    def walk(path: str, section: Section) -> None:
        for name, inner in section.keys.items():
            places.setdefault(name, []).append(path)
            if isinstance(inner, Section):
                walk(join(path, name), inner)

    walk("", TOP)
    for name in {key for keys in CLASS_PARAMS.values() for key in keys}:
        places.setdefault(name, []).append("optimizer.params")
    for name in {key for inner in SCHEDULERS.values() for key in inner.keys}:
        places.setdefault(name, []).append("scheduler.params")
    return places


def _elsewhere(name: str, path: str) -> list[str]:
    """The other sections that have the key. One that many share, such as "enabled", says nothing about where it was meant to go."""
    return [place for place in _places().get(name, []) if place != path]


def _short(name: str) -> str:
    """`name` in one line of a report, whatever characters it is made of."""
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name[:101])
    if shown != shown.strip():
        shown = repr(shown)
    return shown if len(shown) <= 100 else shown[:97] + "..."


def _place(path: str) -> str:
    return f"in {path}" if path else "at the top level"


def join(path: str, name: str) -> str:
    """The dotted key of `name` in the section at `path`."""
    return f"{path}.{name}" if path else name


def last(where: str) -> str:
    """The name of a dotted key in its own section."""
    return where.rpartition(".")[2]
