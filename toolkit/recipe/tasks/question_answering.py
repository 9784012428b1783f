"""The section of extractive question answering."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from toolkit.recipe.numbers import NonNegative, Positive
from toolkit.recipe.tasks.base import Direction, Task


class QuestionAnswering(Task):
    """Find the answer to a question in a text (Rajpurkar et al. 2016, arXiv 1606.05250): where it begins and where it ends."""

    implementation: ClassVar[str] = "toolkit.tasks.questions.question_answering:QuestionAnsweringTask"
    cuts: ClassVar[frozenset[str]] = frozenset({"tensor", "pipeline"})
    splits: ClassVar[bool] = True
    settings: ClassVar[frozenset[str]] = frozenset({"max_answer_tokens", "null_threshold"})
    needs: ClassVar[Mapping[str, str]] = {"null_threshold": "unanswerable"}

    name: Literal["question_answering"] = "question_answering"
    """Extractive question answering."""
    question_field: str = "question"
    """Column with the question."""
    context_field: str = "context"
    """Column with the text that holds the answer."""
    answers_field: str = "answers"
    """Column with the right answers, as SQuAD has them: {"text": [...], "answer_start": [...]}, the first letter of the context being 0. The first is learned, all count in an evaluation."""
    doc_stride: NonNegative = 128
    """Tokens of the context that neighbouring windows share, where data.overlong='split' cuts one that is too long."""
    unanswerable: bool = False
    """Take questions without an answer, as SQuAD 2.0 has them; the answer is then the first token."""
    null_threshold: float = 0.0
    """How much the score of no answer must exceed that of the best one to be given."""
    max_answer_tokens: Positive = 30
    """Longest answer in an evaluation."""

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Mean loss of a window; exact matches and F1 of the words of the best answer over all windows of a question, 0 to 100."""
        return {"loss": "falls", "exact_match": "rises", "f1": "rises"}
