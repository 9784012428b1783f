"""Images and sound in rows as bytes or paths: they are decoded when examples are collated, not when a row is looked at."""

from __future__ import annotations

import copy
from typing import Any

from datasets import Features

from toolkit.data.reading.dataset_types import is_list_feature


def undecoded_features(features: Features) -> Features:
    """`features` whose images and recordings stay as they are kept: {"bytes": ..., "path": ...}."""
    return Features({name: _undecoded(feature) for name, feature in features.items()})


def undecoded(rows: Any) -> Any:
    """`rows` of datasets that decode nothing."""
    features = getattr(rows, "features", None)
    if features is None or not any(map(_decodes, features.values())):
        return rows
    if not hasattr(rows, "select"):  # a stream
        return rows.cast(undecoded_features(features))
    # What is kept has the same type in Arrow either way: `cast` would write all of it anew.
    plain = copy.copy(rows)
    plain._info = copy.copy(rows._info)
    plain._info.features = undecoded_features(features)
    return plain


def _undecoded(feature: Any) -> Any:
    if _is_encoded(feature):
        plain = copy.copy(feature)
        plain.decode = False
        return plain
    if is_list_feature(feature):
        plain = copy.copy(feature)
        plain.feature = _undecoded(feature.feature)
        return plain
    if isinstance(feature, dict):
        return {name: _undecoded(inner) for name, inner in feature.items()}
    return feature


def _decodes(feature: Any) -> bool:
    if is_list_feature(feature):
        return _decodes(feature.feature)
    if isinstance(feature, dict):
        return any(map(_decodes, feature.values()))
    return _is_encoded(feature)


def _is_encoded(feature: Any) -> bool:
    """Whether it is an image, a recording or another file that datasets would decode."""
    return hasattr(feature, "decode_example") and bool(getattr(feature, "decode", False))
