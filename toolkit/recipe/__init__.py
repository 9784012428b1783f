"""What a run is: frozen, typed sections, readable and checkable without torch."""

from toolkit.recipe.inputs import Batch, Data, Model
from toolkit.recipe.outputs import Checkpoint, Evaluation, Launch, Tracking
from toolkit.recipe.recipe import Recipe
from toolkit.recipe.tasks import (
    CausalLM,
    MaskedLM,
    QuestionAnswering,
    SentenceEmbedding,
    Seq2Seq,
    SequenceClassification,
    Task,
    TokenClassification,
)
from toolkit.recipe.tuning import Full, LoRA, Tuning
from toolkit.recipe.update import Optimizer, Parallel, Precision, Schedule

__all__ = [
    "Batch",
    "CausalLM",
    "Checkpoint",
    "Data",
    "Evaluation",
    "Full",
    "Launch",
    "LoRA",
    "MaskedLM",
    "Model",
    "Optimizer",
    "Parallel",
    "Precision",
    "QuestionAnswering",
    "Recipe",
    "Schedule",
    "SentenceEmbedding",
    "Seq2Seq",
    "SequenceClassification",
    "Task",
    "TokenClassification",
    "Tracking",
    "Tuning",
]
