"""A conversation over ssh with the probe on one host. Nothing waits without a limit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from toolkit.doctor import host_probe

CONNECT_S = 5
ANSWER_S = 30.0
"""A cold Python on a shared file system takes its time."""
LONGEST_ANSWER = 2**24
COMMAND_NOT_FOUND = (126, 127)


class Unreachable(Exception):
    """`found` and `fix` of a finding."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(found)
        self.found, self.fix = found, fix


class Session:
    """The probe on `host`, waiting for questions."""

    def __init__(self, host: str, process: asyncio.subprocess.Process) -> None:
        self.host, self._process = host, process

    async def ask(self, action: str, *arguments: object, timeout_s: float = ANSWER_S) -> Any:
        """The probe's answer (see host_probe.serve). Raises Unreachable when none comes in time."""
        reader, writer = self._process.stdout, self._process.stdin
        assert reader is not None and writer is not None
        try:
            writer.write(json.dumps([action, *arguments]).encode() + b"\n")
            line = await asyncio.wait_for(reader.readline(), timeout_s)
            return json.loads(line)
        except TimeoutError:
            raise Unreachable(
                f"no answer within {timeout_s:.0f} s", f"see what hangs on it: ssh {self.host} uptime"
            ) from None
        except (OSError, ValueError):  # the connection broke, or what came is not ours
            raise await self._why_it_ended() from None

    async def _why_it_ended(self) -> Unreachable:
        assert self._process.stderr is not None
        try:
            said = (await asyncio.wait_for(self._process.stderr.read(), CONNECT_S)).decode(errors="replace").strip()
            code = await asyncio.wait_for(self._process.wait(), CONNECT_S)
        except TimeoutError:
            return Unreachable(
                "the answers are not the probe's", f"`ssh {self.host} true` must print nothing: see its shell profile"
            )
        last = said.rpartition("\n")[2] or f"exit code {code}"
        if code in COMMAND_NOT_FOUND:
            return Unreachable(
                f"{sys.executable} does not run there: {last}",
                "install the same environment under the same path; `deepspeed` starts this one on every host",
            )
        return Unreachable(f"ssh: {last}", f"make `ssh {self.host} true` work unasked")


@contextlib.asynccontextmanager
async def session(host: str, ssh_port: int | None) -> AsyncIterator[Session]:
    """Start the probe on `host` in the Python that `deepspeed` would start there. The first answer shows whether it runs."""
    source = Path(host_probe.__file__).read_bytes()
    begin = f"import sys; exec(compile(sys.stdin.buffer.read({len(source)}), 'probe', 'exec')); serve()"
    # As the launcher does: the current folder first, and what this shell has.
    path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
    remote = shlex.join(["env", f"PYTHONPATH={path}", sys.executable, "-u", "-c", begin])
    try:
        process = await asyncio.create_subprocess_exec(
            "ssh",
            *ssh_options(ssh_port),
            host,
            remote,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LONGEST_ANSWER,
            start_new_session=True,
        )
    except OSError as error:
        raise Unreachable(f"ssh does not run: {error}", "install an ssh client") from None
    try:
        assert process.stdin is not None
        process.stdin.write(source)
        yield Session(host, process)
    finally:
        # With whatever ssh itself has started (a proxy): asyncio waits for all who hold the pipes.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), CONNECT_S)


def ssh_options(ssh_port: int | None) -> list[str]:
    """No questions, no long waits; `ssh_port` as `deepspeed --ssh_port`."""
    port = [] if ssh_port is None else ["-p", str(ssh_port)]
    return [*port, "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}"]
