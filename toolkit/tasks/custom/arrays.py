"""What an author calls an example, and the arrays with at least one dimension that are kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from toolkit.data.example import Example
from toolkit.errors import DataError, with_type
from toolkit.tasks.custom.base import Arrays

NUMBER = "@number"
"""Ends the name under which an array without a dimension is kept, in an array of one."""
KINDS = "biuf"
"""numpy's letters for what a tensor may hold: truth values, integers, numbers."""


def checked(given: Any, called: str) -> Arrays:
    """The arrays of an example that the method `called` ("encode of module:Class") gave.

    Integers become int64 and numbers float32, unless they are arrays of another type; float64 becomes float32. Raises
    DataError for what is no mapping, is empty, or holds text, ragged lists and other things of which there is no tensor.
    """
    if not isinstance(given, Mapping) or not given:
        raise DataError(
            f"{called} gave {with_type(given)}",
            expected="one example: numbers and arrays by name",
            do='return a dict, for instance {"user": 3, "items": [1, 2]}',
        )
    return {_name(name, called): _array(name, value, called) for name, value in given.items()}


def as_array(value: Any) -> Any:
    """A tensor as an array, of fp32 where numpy has no such format; anything else as it is."""
    if not torch.is_tensor(value):
        return value
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy(force=True)


def kept(arrays: Arrays) -> Example:
    """`arrays` as they are kept: those without a dimension as arrays of one, under names that say so."""
    return {
        **{name: value for name, value in arrays.items() if value.ndim},
        **{name + NUMBER: value.reshape(1) for name, value in arrays.items() if not value.ndim},
    }


def given_back(example: Example) -> Arrays:
    """What `kept` was made of."""
    return {
        name.removesuffix(NUMBER): value.reshape(()) if name.endswith(NUMBER) else value
        for name, value in example.items()
    }


def _name(name: Any, called: str) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise DataError(
            f"{called} gave an array named {name!r}",
            expected="a name of letters, digits and _",
            do="rename it",
        )
    return name


def _array(name: str, value: Any, called: str) -> Any:
    value = as_array(value)
    try:
        found = np.asarray(value)
    except ValueError:  # numpy's answer to lists of different lengths
        raise DataError(
            f"{called} gave {name!r}: lists of different lengths inside one example",
            expected="a number, or an array or list with one length per dimension",
            do="fill the shorter ones up, or keep them one after the other with their lengths beside them",
        ) from None
    if found.dtype.kind not in KINDS:
        raise DataError(
            f"{called} gave {name!r}: {with_type(value)}",
            expected="numbers: an integer, a float, a truth value, or an array or list of them",
            do="turn it into numbers in encode, or leave it out there",
        )
    if isinstance(value, list | tuple) and not found.size:
        raise DataError(
            f"{called} gave {name!r}: {value!r:.60}, an empty list, which does not say of what",
            expected="an array with a type, also where it is empty",
            do=f"make it an array in encode: np.array({name}, np.int64) of integers, np.float32 of numbers",
        )
    if not isinstance(value, np.ndarray) and _is_too_large(value):
        raise DataError(
            f"{called} gave {name!r}: {with_type(value)}",
            expected="integers of 64 bits, with a sign",
            do="number them from 0 on in encode",
        )
    if found.dtype == np.float64:
        return found.astype(np.float32)
    # Of no width that torch indexes with, or none that it has.
    return found.astype(np.int64) if found.dtype.kind in "iu" and not isinstance(value, np.ndarray) else _signed(found)


def _is_too_large(value: Any) -> bool:
    """Whether an integer in `value`, a number or a list, is none of int64."""
    if isinstance(value, list | tuple):
        return any(map(_is_too_large, value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _signed(found: Any) -> Any:
    return found.astype(np.int64) if found.dtype.kind == "u" and found.dtype.itemsize > 1 else found
