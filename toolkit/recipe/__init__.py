"""What a run is: frozen, typed sections, readable and checkable without torch."""

from toolkit.recipe.inputs import Batch, Data, Model
from toolkit.recipe.outputs import Checkpoint, Evaluation, Launch, Tracking
from toolkit.recipe.recipe import Recipe
from toolkit.recipe.tasks import (
    DPO,
    KTO,
    ORPO,
    CausalLM,
    Custom,
    ImageClassification,
    ImageTextToText,
    MaskedLM,
    QuestionAnswering,
    RewardModel,
    SentenceEmbedding,
    Seq2Seq,
    SequenceClassification,
    SimPO,
    SpeechCTC,
    SpeechSeq2Seq,
    Task,
    TokenClassification,
)
from toolkit.recipe.tuning import Full, LoRA, Tuning
from toolkit.recipe.update import Optimizer, Parallel, Precision, Schedule

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
    "Tracking",
    "Tuning",
]
