"""What can be learned: one typed section per task, each with only its own fields and the columns it reads."""

from toolkit.recipe.tasks.base import Direction, Task
from toolkit.recipe.tasks.causal_lm import CausalLM
from toolkit.recipe.tasks.preference import DPO, KTO, ORPO, RewardModel, SimPO
from toolkit.recipe.tasks.sequence_classification import SequenceClassification

__all__ = [
    "DPO",
    "KTO",
    "ORPO",
    "CausalLM",
    "Direction",
    "RewardModel",
    "SequenceClassification",
    "SimPO",
    "Task",
]
