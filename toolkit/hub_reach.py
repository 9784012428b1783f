"""Whether the model hub answers: found out once in a process and in seconds. The hub's own library tries again for a minute."""

from __future__ import annotations

import threading
from functools import cache

from toolkit.errors import one_line

WAIT_S = 5.0
"""Longest wait for a connection, and again for an answer."""
GIVE_UP_S = 8.0
"""Longest wait in all; asking for the address of a name has no time limit of its own."""


def why_out_of_reach() -> str | None:
    """Why the hub at HF_ENDPOINT does not answer, None where it does. With HF_HUB_OFFLINE=1 it is not asked."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE=1 is set, so it is not asked"
    return _asked(str(constants.ENDPOINT))


def cure() -> str:
    """What helps where the hub is out of reach."""
    from huggingface_hub import constants

    do = (
        "give the path of a local copy; or set HF_HOME to a folder whose cache has it, with HF_HUB_OFFLINE=1; or "
        "HF_ENDPOINT to the address of a mirror, or HTTPS_PROXY to that of a proxy"
    )
    return f"{do}; or unset HF_HUB_OFFLINE on a host with a network" if constants.HF_HUB_OFFLINE else do


@cache
def _asked(endpoint: str) -> str | None:
    found: list[str | None] = []
    # A thread of its own, for the sake of GIVE_UP_S; it ends with the process.
    asking = threading.Thread(target=lambda: found.append(_ask(endpoint)), daemon=True)
    asking.start()
    asking.join(GIVE_UP_S)
    problem = found[0] if found else f"no answer within {GIVE_UP_S:.0f} seconds"
    return None if problem is None else f"{endpoint} cannot be reached: {problem}"


def _ask(endpoint: str) -> str | None:
    from huggingface_hub import get_session

    try:
        status = int(get_session().head(endpoint, timeout=WAIT_S).status_code)
    except Exception as error:
        # The HTTP library's errors, its proxy's, TLS's and the system's have nothing in common.
        return one_line(error)
    return f"it answers {status}" if status >= 500 or status == 407 else None
