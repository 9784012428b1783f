"""The loss that is computed inside the head is that of the model's own logits, also where the head is not all there is."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.architectures import VOCABULARY, tiny_fields
from toolkit.models.config import load_config
from toolkit.models.heads import is_plain_head, target_rows, token_log_probabilities, token_loss, use_loss_head
from toolkit.recipe import Model

PLAIN = ("llama", "gpt2", "mixtral")
TRANSFORMED = ("bert", "roberta", "roberta-prelayernorm", "xlm-roberta-xl", "modernbert-decoder", "electra")
"""A part of the model between its base and its head, with weights of its own."""
CHANGED = ("recurrent_gemma", "xlstm", "prophetnet")
"""The config says what happens to the logits, or what goes into them."""


@pytest.mark.parametrize("architecture", [*PLAIN, *TRANSFORMED, *CHANGED])
def test_the_loss_is_that_of_the_logits(architecture: str) -> None:
    recipe = Model(architecture=architecture, weights="random", tokenizer="none", config=tiny_fields(architecture))
    config = load_config(recipe, vocabulary_size=VOCABULARY, overrides={})
    config.is_decoder = True
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    tokens = (torch.arange(12) * 7 + 1).unsqueeze(0) % VOCABULARY
    targets = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits
        wanted = torch.nn.functional.cross_entropy(logits[0].float(), targets[0], ignore_index=-100, reduction="sum")
        assert use_loss_head(model) == is_plain_head(model) == (architecture in PLAIN)
        found = token_loss(model, {"input_ids": tokens}, targets, label_smoothing=0.0, gradient_scale=1.0)
        rows = target_rows(targets)
        each = token_log_probabilities(model, {"input_ids": tokens}, targets, rows)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    assert each.shape == (11,)
    torch.testing.assert_close(
        each, logits[0, :-1].float().log_softmax(-1)[torch.arange(11), tokens[0, 1:]], rtol=1e-5, atol=1e-6
    )
