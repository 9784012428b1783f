"""Classes, sets of classes and numbers against what they should be, by scikit-learn and scipy (GLUE's metrics).

The libraries are imported where they are used: they take seconds, and rank 0 alone needs them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

Records = Sequence[Mapping[str, Any]]


def class_scores(records: Records, *, positive: Any = None) -> dict[str, float]:
    """accuracy, f1_macro and mcc (Matthews 1975) of one class per example; 0 to 1, mcc from -1.

    With `positive`, one of the classes, also f1: that of this class alone, as MRPC and QQP have it. f1_macro is the mean
    over the classes that occur in "prediction" or "reference".
    """
    from sklearn import metrics

    expected, predicted = [record["reference"] for record in records], [record["prediction"] for record in records]
    found = {
        "accuracy": float(metrics.accuracy_score(expected, predicted)),
        "f1_macro": float(metrics.f1_score(expected, predicted, average="macro", zero_division=0)),
        "mcc": _mcc(expected, predicted),
    }
    if positive is not None:
        each = metrics.f1_score(expected, predicted, labels=[positive], average=None, zero_division=0)
        found["f1"] = float(each[0])
    return found


def confusion(records: Records, classes: Sequence[str]) -> dict[str, Any]:
    """{"classes", "counts"}: counts[i][j] of the examples of class i were taken for class j."""
    from sklearn import metrics

    expected, predicted = [record["reference"] for record in records], [record["prediction"] for record in records]
    counts = metrics.confusion_matrix(expected, predicted, labels=list(classes))
    return {"classes": list(classes), "counts": counts.tolist()}


def _mcc(expected: list[Any], predicted: list[Any]) -> float:
    from sklearn import metrics

    # scikit-learn warns of a single class, for which it has 0.
    return float(metrics.matthews_corrcoef(expected, predicted)) if len({*expected, *predicted}) > 1 else 0.0


def class_set_scores(records: Records, *, classes: Sequence[Any]) -> dict[str, float]:
    """f1_micro, f1_macro over `classes`, and accuracy (the whole set is right) of any number of classes per example."""
    from sklearn import metrics
    from sklearn.preprocessing import MultiLabelBinarizer

    binarizer = MultiLabelBinarizer(classes=list(classes))
    expected = binarizer.fit_transform([record["reference"] for record in records])
    predicted = binarizer.transform([record["prediction"] for record in records])
    return {
        "accuracy": float(metrics.accuracy_score(expected, predicted)),
        "f1_micro": float(metrics.f1_score(expected, predicted, average="micro", zero_division=0)),
        "f1_macro": float(metrics.f1_score(expected, predicted, average="macro", zero_division=0)),
    }


def number_scores(records: Records) -> dict[str, float]:
    """pearson and spearman, -1 to 1, and mean squared error of one number per example.

    NaN for a correlation of what does not vary.
    """
    from scipy import stats
    from sklearn import metrics

    expected = [float(record["reference"]) for record in records]
    predicted = [float(record["prediction"]) for record in records]
    found = {"mse": float(metrics.mean_squared_error(expected, predicted))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=stats.ConstantInputWarning)
        # Of fewer than two examples scipy raises: there is nothing to correlate.
        few = len(records) < 2
        found["pearson"] = float("nan") if few else float(stats.pearsonr(expected, predicted).statistic)
        found["spearman"] = float("nan") if few else float(stats.spearmanr(expected, predicted).statistic)
    return found
