"""What can be learned: one typed section per task, each with only its own fields and the columns it reads."""

from toolkit.recipe.tasks.base import Direction, Task
from toolkit.recipe.tasks.causal_lm import CausalLM
from toolkit.recipe.tasks.custom import Custom
from toolkit.recipe.tasks.image_classification import ImageClassification
from toolkit.recipe.tasks.image_text import ImageTextToText
from toolkit.recipe.tasks.masked_lm import MaskedLM
from toolkit.recipe.tasks.preference import DPO, KTO, ORPO, RewardModel, SimPO
from toolkit.recipe.tasks.question_answering import QuestionAnswering
from toolkit.recipe.tasks.sentence_embedding import SentenceEmbedding
from toolkit.recipe.tasks.seq2seq import Seq2Seq
from toolkit.recipe.tasks.sequence_classification import SequenceClassification
from toolkit.recipe.tasks.speech import SpeechCTC, SpeechSeq2Seq
from toolkit.recipe.tasks.token_classification import TokenClassification

__all__ = [
    "DPO",
    "KTO",
    "ORPO",
    "CausalLM",
    "Custom",
    "Direction",
    "ImageClassification",
    "ImageTextToText",
    "MaskedLM",
    "QuestionAnswering",
    "RewardModel",
    "SentenceEmbedding",
    "Seq2Seq",
    "SequenceClassification",
    "SimPO",
    "SpeechCTC",
    "SpeechSeq2Seq",
    "Task",
    "TokenClassification",
]
