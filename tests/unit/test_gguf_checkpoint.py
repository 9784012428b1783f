"""Conversion of GGUF files: a small file written by the test with the format's own library, and the two fetched checkpoints."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from toolkit.errors import ModelError
from toolkit.models import assets
from toolkit.models.converters.gguf_checkpoint import convert

HIDDEN, HEADS, KV_HEADS, INNER, LAYERS = 32, 4, 2, 64, 2
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


def fetched(name: str) -> str:
    try:
        return assets.resolve(name)
    except ModelError as error:
        pytest.skip(str(error))  # `make test` fetches it first


def llama_weights() -> dict[str, np.ndarray]:
    """Hugging Face names to fp32 arrays whose values bf16 holds exactly."""
    random = np.random.default_rng(0)
    head = HIDDEN // HEADS
    shapes = {"model.embed_tokens.weight": (259, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.q_proj.weight": (HIDDEN, HIDDEN), f"{at}.self_attn.o_proj.weight": (HIDDEN, HIDDEN)}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (KV_HEADS * head, HIDDEN) for name in "kv"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (HIDDEN, INNER)}
        shapes |= {f"{at}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    return {name: (random.integers(-127, 127, shape) / 256).astype(np.float32) for name, shape in shapes.items()}


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp keeps them for rotary embeddings: the two halves of each head alternate."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, weights: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(259)
    add_tokenizer(writer)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, weight in weights.items():
        kept = interleave(weight, HEADS) if "q_proj" in name else weight
        kept = interleave(weight, KV_HEADS) if "k_proj" in name else kept
        name = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm")
        name = name.replace("model.layers.", "blk.")
        for ours, theirs in names.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        writer.add_tensor(name, kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    # "Two spaces" is a token that shows whether digits are split off first; a byte that no test writes gives it its place.
    letters = sorted(set(ByteLevel.alphabet()) - {"\u0100"})
    writer.add_token_list([*special, *letters, "\u0120\u0120"])
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 256)
    writer.add_token_merges(["\u0120 \u0120"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "tiny.gguf", llama_weights())
    convert(folder / "tiny.gguf", folder / "out")
    return folder / "out"


def test_weights_are_the_ones_written(converted: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted)
    assert model.dtype == torch.bfloat16
    state = model.state_dict()
    expected = llama_weights()
    assert set(state) == {*expected, "lm_head.weight"}
    for name, weight in expected.items():
        assert torch.equal(state[name].float(), torch.from_numpy(weight)), name
    assert model.config.tie_word_embeddings
    assert model.config.rms_norm_eps == 1e-5
    assert not hasattr(model.config, "quantization_config")


def test_tokenizer_and_generation_defaults(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.model_max_length == 128
    assert tokenizer.tokenize("  12") == ["\u0120\u0120", "1", "2"]
    assert tokenizer.decode(tokenizer("a  b 12\n")["input_ids"]) == "a  b 12\n"
    defaults = GenerationConfig.from_pretrained(converted)
    assert tokenizer.convert_ids_to_tokens(defaults.eos_token_id) == "<|im_end|>"
    assert (defaults.bos_token_id, defaults.pad_token_id) == (1, 2)


def test_nothing_of_this_host_is_written(converted: Path) -> None:
    for file in converted.glob("*.json"):
        assert str(converted.parent) not in file.read_text()


def test_converted_model_can_be_saved_again(converted: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(converted).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size > 0


def test_smollm2_answers() -> None:
    place = fetched("smollm2-135m-instruct")
    model = AutoModelForCausalLM.from_pretrained(place)
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id) == "<|im_end|>"
    question = [{"role": "user", "content": "What is 2+2?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "4" in tokenizer.decode(answer)
    assert answer[-1] == model.generation_config.eos_token_id


def test_minilm_is_pretrained_and_takes_a_classifier() -> None:
    place = fetched("minilm-l6")
    model, report = AutoModelForSequenceClassification.from_pretrained(place, num_labels=3, output_loading_info=True)
    assert {name.partition(".")[0] for name in report["missing_keys"]} == {"classifier"}
    tokenizer = AutoTokenizer.from_pretrained(place)
    sentences = ["A man is playing a guitar", "Someone plays an instrument", "The stock market fell today"]
    inputs = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.base_model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    music, similar, other = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    assert music @ similar > 0.5 > 0.2 > music @ other
