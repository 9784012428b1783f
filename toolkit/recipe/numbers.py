"""Types of numbers and other values that recipe fields share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Scalar = int | float | bool | str


def json_text(fields: object) -> object:
    """`fields` of names and values with each list, object or None as JSON text, the form it has on the command line."""
    if not isinstance(fields, Mapping):
        return fields
    return {
        name: json.dumps(value) if value is None or isinstance(value, Mapping | list | tuple) else value
        for name, value in fields.items()
    }
