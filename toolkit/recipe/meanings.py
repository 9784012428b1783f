"""What each field means: the string below it in the source, read when somebody asks.

Reading the source of every section takes a third of a second, which only help and documents are worth.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from functools import cache


@cache
def meanings(owner: type) -> dict[str, str]:
    """Name -> the string below each field of `owner` and its bases; those are left out whose source is not there."""
    return {name: text for kind in reversed(owner.__mro__) for name, text in _own(kind).items()}


@cache
def _own(owner: type) -> dict[str, str]:
    try:
        source = inspect.getsource(owner)
    except (OSError, TypeError):  # typed at a prompt, or not written in Python
        return {}
    body = ast.parse(textwrap.dedent(source)).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: inspect.cleandoc(str(text.value.value))
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }
