"""The variables by which a launcher tells a process its place, before anything heavy relies on them."""

from __future__ import annotations

import os

from toolkit.errors import LaunchError

LARGEST_PORT = 65535


def check_launcher_environment(*, will_start: bool) -> None:
    """Raise LaunchError for variables that no launcher sets so. `will_start`: the processes are going to meet."""
    world = _number("WORLD_SIZE", least=1)
    rank, _ = _number("RANK"), _number("LOCAL_RANK")
    if rank is not None and rank >= (world or 1):
        raise LaunchError(
            f"RANK={rank} with WORLD_SIZE={world or 1}",
            expected=f"ranks from 0 to {(world or 1) - 1}",
            do="unset both, or start with `deepspeed`, `accelerate launch` or `torchrun`",
        )
    port = _number("MASTER_PORT", least=1)
    if port is not None and port > LARGEST_PORT:
        raise _no_number("MASTER_PORT", str(port), f"a port, 1 to {LARGEST_PORT}")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if will_start and missing and (world or 1) > 1:
        raise LaunchError(
            f"WORLD_SIZE={world} without {' and '.join(missing)}",
            expected="the environment of a launcher",
            do="start with `deepspeed`, `accelerate launch` or `torchrun`, or unset WORLD_SIZE",
        )


def _number(name: str, *, least: int = 0) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise _no_number(name, text, f"a number, at least {least}")
    return int(text)


def _no_number(name: str, text: str, expected: str) -> LaunchError:
    return LaunchError(
        f"{name}={text!r} in the environment", expected=expected, do=f"unset {name}, or start with a launcher"
    )
