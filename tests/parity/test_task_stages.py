"""Pipeline stages under every kind of head: run one after the other in one process, against the model's own code."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from tests.architectures import WITHOUT_PLAN, planned, tiny_config
from tests.tasks import KINDS, Batch, Kind, inputs_of, whole_model
from toolkit.errors import ModelError
from toolkit.models.attention import tell_documents
from toolkit.models.partial import place
from toolkit.models.stage_plan import OUTLINES, balance, stage_plan
from toolkit.models.stages import build_skeleton, cut, tied_parameters

TOLERANCE = 1e-5
"""Relative, fp32."""

FLOOR = 1e-3
"""As in test_stages."""

UNCUT = {"gemma3n_text", "hrm_text"}
"""Refused in test_stages, with the reason."""

_ALL = {"bert", "distilbert", "electra", "ernie", "modernbert", "roberta", "camembert", "xlm-roberta"}
ENCODERS = dict.fromkeys(("sequence_classification", "token_classification", "masked_lm", "question_answering"), _ALL)
"""Encoders that must be among the architectures."""

Gradients = dict[str, Tensor]


def gradients_of(model: nn.Module) -> Gradients:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def stages_of(kind: Kind, model: nn.Module, num_stages: int) -> list[nn.Module]:
    """Each built as a rank of a pipeline builds it, with the weights of `model`, and without dropout."""
    config: Any = model.config
    weights = model.state_dict()
    stages = [build_skeleton(kind.auto_class, config).train() for _ in range(num_stages)]
    for stage, layers in zip(stages, balance(stages[0], num_stages), strict=True):
        cut(stage, layers)
        for name in stage.state_dict():
            place(stage, name, weights[name].clone())
        for module in stage.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return stages


def run_stages(kind: Kind, stages: list[nn.Module], batch: Batch) -> tuple[float, list[Gradients]]:
    """Forward and backward with nothing but hidden states handed from stage to stage, as between processes."""
    handed: list[tuple[Tensor, Tensor]] = []
    given: Batch = {}
    for stage in stages[:-1]:
        told = tell_documents(stage, inputs_of(batch) | given)
        output = stage.base_model(**told).last_hidden_state  # type: ignore[operator]
        given = {"inputs_embeds": output.detach().requires_grad_()}
        handed.append((output, given["inputs_embeds"]))
    loss = kind.loss(stages[-1], batch | given)
    loss.backward()  # type: ignore[no-untyped-call]
    for output, received in reversed(handed):
        output.backward(received.grad)
    return float(loss.detach()), [gradients_of(stage) for stage in stages]


def deviation(kind: Kind, model_type: str, num_stages: int, **changes: Any) -> float:
    """Largest relative deviation of the loss and of any parameter's gradient; checks that the stages share out the model."""
    batch = kind.batch()
    whole = whole_model(kind, tiny_config(model_type, **{**kind.fields, **changes}))
    stages = stages_of(kind, whole, num_stages)
    names = [name for stage in stages for name, _ in stage.named_parameters()]
    tied = {name for stage in stages for name in tied_parameters(stage)}
    assert sorted(names) == sorted([*dict(whole.named_parameters()), *tied]), model_type
    wanted_loss = kind.loss(whole, batch)
    wanted_loss.backward()  # type: ignore[no-untyped-call]
    wanted = gradients_of(whole)
    loss, parts = run_stages(kind, stages, batch)
    summed: Gradients = {}
    for part in parts:
        for name, gradient in part.items():
            assert name not in summed or name in tied, f"{model_type}: {name} on two stages"
            summed[name] = summed[name] + gradient if name in summed else gradient
    assert summed.keys() == wanted.keys(), model_type
    floor = FLOOR * max(float(gradient.norm()) for gradient in wanted.values())
    worst = [float((summed[name] - g).norm()) / max(float(g.norm()), floor) for name, g in wanted.items()]
    wanted_value = float(wanted_loss.detach())
    return max(abs(loss - wanted_value) / abs(wanted_value), *worst)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "seq2seq"])
def test_architectures(name: str) -> None:
    """Two stages of every architecture that has this head and a place to cut."""
    kind = KINDS[name]
    kinds = sorted({*planned(), *WITHOUT_PLAN, *OUTLINES} & kind.architectures() - UNCUT)
    deviations = {model_type: deviation(kind, model_type, 2) for model_type in kinds}
    assert {model_type: value for model_type, value in deviations.items() if not value < TOLERANCE} == {}
    assert ENCODERS[name] <= deviations.keys()


def test_three_stages() -> None:
    """A stage without either end; weights that both ends share."""
    cases = [("masked_lm", "bert"), ("masked_lm", "xlm-roberta"), ("masked_lm", "modernbert")]
    cases += [("sequence_classification", "bert"), ("sequence_classification", "llama")]
    deviations = {case: deviation(KINDS[case[0]], case[1], 3) for case in cases}
    assert {case: value for case, value in deviations.items() if not value < TOLERANCE} == {}


def test_one_name_for_shared_weights() -> None:
    """Where transformers has the head first, a weight is still named as its other stage and its checkpoint name it."""
    model = build_skeleton(KINDS["masked_lm"].auto_class, tiny_config("xlm-roberta"))
    names = [name for name, _ in model.named_parameters()]
    assert "roberta.embeddings.word_embeddings.weight" in names and "lm_head.decoder.weight" not in names


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("albert", "all its layers are one and the same"),
        ("deberta-v2", "all its layers read one table of relative positions, which is trained"),
        ("mpnet", "all its layers read one table of relative positions, which is trained"),
        ("t5", "each layer of its decoder reads what its encoder returns"),
        ("bart", "each layer of its decoder reads what its encoder returns"),
    ],
)
def test_architectures_that_cannot_be_cut(model_type: str, reason: str) -> None:
    with pytest.raises(ModelError, match=f"{model_type} cannot be cut into pipeline stages: {reason}"):
        stage_plan(tiny_config(model_type))
