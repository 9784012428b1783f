"""How an answer is chosen, on one process; `tests/parity/test_generation.py` has the engines."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from toolkit.errors import ModelError
from toolkit.models.attention import DOCUMENTS
from toolkit.models.decoding import GenerationSettings, generate, left_padded

HOT = 1.0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_new_tokens": 0}, "at least 1"),
        ({"num_beams": 0}, "at least 1"),
        ({"stop_ids": ()}, "None takes the model's own"),
        ({"temperature": 0.0}, "a temperature above 0"),
        ({"temperature": 1.0, "num_beams": 2}, "no beams"),
        ({"top_p": 0.9}, "set a temperature"),
    ],
)
def test_settings_that_contradict_themselves(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GenerationSettings(**{"max_new_tokens": 4, **fields})  # type: ignore[arg-type]


def test_prompts_end_together() -> None:
    batch = left_padded([[5, 6], [7, 8, 9]], 1)
    assert batch["input_ids"].tolist() == [[1, 5, 6], [7, 8, 9]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    with pytest.raises(ValueError, match="no token"):
        left_padded([[5], []], 1)


def test_what_is_drawn_has_the_probabilities_of_the_model() -> None:
    """400 seeds of one token against softmax(logits / temperature), and against it cut to the likeliest."""
    model = tiny.lively(tiny.llama(tiny.byte_tokenizer())).eval()
    tokens = torch.tensor([[5, 9, 100]])
    with torch.no_grad():
        logits = model(tokens).logits[0, -1] / HOT
    wanted, likeliest = logits.softmax(-1), logits.argsort(descending=True)
    assert wanted.max() < 0.6 and wanted[likeliest[4]] > 0.02, "neither certain nor flat"
    batch, count = {"input_ids": tokens}, 400
    drawn = torch.zeros_like(wanted)
    for seed in range(count):
        drawn[generate(model, batch, GenerationSettings(1, temperature=HOT, seed=seed))[0][0]] += 1 / count
    # Each of the ten likeliest within four standard deviations.
    for token in likeliest[:10]:
        share = float(wanted[token])
        assert abs(float(drawn[token]) - share) < 4 * (share * (1 - share) / count) ** 0.5 + 1 / count
    some = {
        generate(model, batch, GenerationSettings(1, temperature=HOT, top_k=2, seed=seed))[0][0] for seed in range(40)
    }
    assert some == set(likeliest[:2].tolist())
    sure = {
        generate(model, batch, GenerationSettings(1, temperature=HOT, top_p=1e-6, seed=seed))[0][0] for seed in range(5)
    }
    assert sure == {int(likeliest[0])}


def test_the_models_own_settings_hold_where_none_are_given() -> None:
    model = tiny.lively(tiny.llama(tiny.byte_tokenizer())).eval()
    batch = left_padded([[100, 200, 300]], 0)
    free = generate(model, batch, GenerationSettings(12))[0]
    assert len(free) == 12
    model.generation_config.eos_token_id = [free[4], 1]
    assert generate(model, batch, GenerationSettings(12))[0] == free[: free.index(free[4]) + 1]
    assert generate(model, batch, GenerationSettings(12, stop_ids=(free[2],)))[0] == free[: free.index(free[2]) + 1]
    model.generation_config.eos_token_id = 2
    # As the first Llama-2 had them: sampling is not asked for here.
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.6
    assert generate(model, batch, GenerationSettings(12))[0] == free
    model.generation_config.suppress_tokens = [free[0]]
    assert generate(model, batch, GenerationSettings(12))[0][0] != free[0]


def test_padding_is_masked_also_where_attention_is_told_the_documents() -> None:
    model = tiny.lively(tiny.llama(tiny.byte_tokenizer())).eval()
    prompts = [[100, 200, 300, 40, 50], [7]]
    wanted = [generate(model, left_padded([prompt], 0), GenerationSettings(8))[0] for prompt in prompts]
    model.set_attn_implementation(DOCUMENTS)
    assert generate(model, left_padded(prompts, 0), GenerationSettings(8)) == wanted
    assert model.config._attn_implementation == DOCUMENTS


def test_a_model_without_a_language_model_head() -> None:
    tokenizer = tiny.wordpiece_tokenizer()
    with pytest.raises(ModelError) as refused:
        generate(tiny.bert(tokenizer), left_padded([[5]], 0), GenerationSettings(2))
    assert refused.value.what == "BertModel generates nothing" and "choose another model" in refused.value.do
