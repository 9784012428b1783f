"""Fine-tune and pretrain Hugging Face models with DeepSpeed: strict, planned, proven."""

from __future__ import annotations

from toolkit.errors import ToolkitError, install_hook

install_hook()  # before the imports that take time

from toolkit.recipe import (  # noqa: E402
    DPO,
    KTO,
    ORPO,
    Batch,
    CausalLM,
    Checkpoint,
    Data,
    Evaluation,
    Full,
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
    Task,
    TokenClassification,
    Tracking,
    Tuning,
)


def main(recipe: Recipe) -> None:
    """Run `recipe` with the overrides on the command line, then exit with the code of the outcome. Call it last."""
    from toolkit.cli.run import main as run

    raise SystemExit(run(recipe))


__all__ = [
    "DPO",
    "KTO",
    "ORPO",
    "Batch",
    "CausalLM",
    "Checkpoint",
    "Data",
    "Evaluation",
    "Full",
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
    "Task",
    "TokenClassification",
    "ToolkitError",
    "Tracking",
    "Tuning",
    "main",
]
