"""Fine-tune and pretrain Hugging Face models with DeepSpeed: strict, planned, proven."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError, install_hook
from toolkit.heavy_imports import heavy_imports

if TYPE_CHECKING:
    from torch import nn

install_hook()  # before the imports that take time

with heavy_imports():
    from toolkit.recipe import (
        DPO,
        KTO,
        ORPO,
        Batch,
        CausalLM,
        Checkpoint,
        Custom,
        Data,
        Evaluation,
        Full,
        ImageClassification,
        ImageTextToText,
        Launch,
        LoRA,
        MaskedLM,
        Model,
        Optimizer,
        Parallel,
        Precision,
        QuestionAnswering,
        Recipe,
        RewardModel,
        Schedule,
        SentenceEmbedding,
        Seq2Seq,
        SequenceClassification,
        SimPO,
        SpeechCTC,
        SpeechSeq2Seq,
        Task,
        TokenClassification,
        Tracking,
        Tuning,
    )


def main(recipe: Recipe) -> None:
    """Run `recipe` with the overrides on the command line, then exit with the code of the outcome. Call it last."""
    from toolkit.cli.run import main as run

    raise SystemExit(run(recipe))


def load_custom(folder: str | Path) -> nn.Module:
    """The torch module in an export of `task=Custom(...)`, on the CPU, in fp32 and in evaluation mode. Raises InputError."""
    from toolkit.models.custom import load_custom as load

    return load(folder)


__all__ = [
    "DPO",
    "KTO",
    "ORPO",
    "Batch",
    "CausalLM",
    "Checkpoint",
    "Custom",
    "Data",
    "Evaluation",
    "Full",
    "ImageClassification",
    "ImageTextToText",
    "Launch",
    "LoRA",
    "MaskedLM",
    "Model",
    "Optimizer",
    "Parallel",
    "Precision",
    "QuestionAnswering",
    "Recipe",
    "RewardModel",
    "Schedule",
    "SentenceEmbedding",
    "Seq2Seq",
    "SequenceClassification",
    "SimPO",
    "SpeechCTC",
    "SpeechSeq2Seq",
    "Task",
    "TokenClassification",
    "ToolkitError",
    "Tracking",
    "Tuning",
    "load_custom",
    "main",
]
