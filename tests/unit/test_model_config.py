"""The configuration a model is built from is transformers' own of the same fields, for every decoder it knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.architectures import VOCABULARY, tiny_fields
from toolkit.errors import ModelError
from toolkit.models.attention_choice import choose_attention
from toolkit.models.config import load_config, overruled
from toolkit.models.random_weights import RandomWeights, fill
from toolkit.models.stages import build_skeleton
from toolkit.recipe import Model
from toolkit.recipe.load import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"

INVALID = {"bamba", "gemma4_assistant", "gpt_neo", "granitemoehybrid", "mamba2", "zamba2", "zaya"}
"""Architectures whose class refuses the small sizes of tests/architectures.py."""

FORWARD = ("llama", "gpt2", "gemma3_text", "qwen3", "qwen3_moe", "deepseek_v3", "falcon", "opt", "bloom", "mamba")


def scratch(architecture: str, config: dict[str, Any]) -> Model:
    return Model(architecture=architecture, weights="random", tokenizer="none", config=config)


def build(architecture: str, config: dict[str, Any]) -> PretrainedConfig:
    return load_config(scratch(architecture, config), vocabulary_size=VOCABULARY, overrides={})


def own(architecture: str, fields: dict[str, Any]) -> PretrainedConfig:
    """transformers' own class of the same fields; a value under another name would be set too late to be derived from.

    Under which of its own names the class keeps such a value is seen from what changes when it is set afterwards.
    """
    kind = CONFIG_MAPPING[architecture]
    named = {name: value for name, value in fields.items() if name in kind.__dataclass_fields__}
    instance = kind()
    for name in [name for name in fields if name not in named]:
        before = dict(vars(instance))
        setattr(instance, name, fields[name])
        named |= {own: value for own, value in vars(instance).items() if own not in before or before[own] != value}
    config: PretrainedConfig = kind(**named)
    config.use_cache = False
    return config


def test_every_decoder_has_the_config_of_its_fields() -> None:
    refused = set()
    for architecture in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        fields = tiny_fields(architecture)
        try:
            wanted = own(architecture, fields).to_dict()
        except Exception:
            refused.add(architecture)
            continue
        found = build(architecture, fields)
        described = found.to_dict()
        for part in found.sub_configs:
            # A language model inside a larger one gets the tokenizer's vocabulary, which `own` is not told.
            if isinstance(wanted.get(part), dict) and "vocab_size" in wanted[part]:
                wanted[part]["vocab_size"] = described[part]["vocab_size"]
        assert described == wanted, architecture
    assert refused == INVALID and len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) > 180


@pytest.mark.parametrize("architecture", FORWARD)
def test_a_model_from_scratch_computes_what_transformers_own_does(architecture: str) -> None:
    """Of the same weights, which are drawn as transformers draws them."""
    fields = tiny_fields(architecture)
    config, wanted = build(architecture, fields), own(architecture, fields)
    config._attn_implementation = choose_attention(AutoModelForCausalLM, config, "auto")
    ours = build_skeleton(AutoModelForCausalLM, config)
    fill(ours, RandomWeights(AutoModelForCausalLM, config, 7))
    reference = AutoModelForCausalLM.from_config(wanted, dtype=torch.float32).eval()
    drawn = dict(ours.named_parameters())
    for name, parameter in reference.named_parameters():
        # Constants are the same number; what is drawn has the same spread, as far as so few numbers tell.
        assert drawn[name].std(unbiased=False).item() == pytest.approx(
            parameter.std(unbiased=False).item(), rel=0.35
        ), name
        assert drawn[name].shape == parameter.shape
    reference.load_state_dict(ours.state_dict())
    tokens = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(tokens).logits, reference(tokens).logits, rtol=0, atol=0)


def test_what_is_derived_follows() -> None:
    """The instance: head_dim 128 and q_proj [512, 128] came out of the defaults of the architecture."""
    config = build("llama", {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4})
    assert config.head_dim == 32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert tuple(model.model.layers[0].self_attn.q_proj.weight.shape) == (128, 128)


@pytest.mark.parametrize(("recipe", "head_dim"), [("pretrain_llama10m_zero1", 32), ("pretrain_llama1b_zero2", 64)])
def test_recipes_from_scratch_have_heads_of_their_width(recipe: str, head_dim: int) -> None:
    model = load_recipe(RECIPES / f"{recipe}.py").model
    assert load_config(model, vocabulary_size=100, overrides={}).head_dim == head_dim


def write(directory: Path, fields: dict[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def over(directory: Path, config: dict[str, Any], **model: Any) -> PretrainedConfig:
    return load_config(Model(path=str(directory), config=config, **model), vocabulary_size=9, overrides={})


OLD = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "rope_theta": 5e5}
"""A config.json as transformers 4 writes them."""


def test_overrides_of_a_checkpoint(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", OLD)
    assert over(plain, {}, weights="random").head_dim == 16
    assert over(plain, {"num_attention_heads": 2}, weights="random").head_dim == 32, "derived: it follows"
    said = write(tmp_path / "said", {**OLD, "head_dim": 16})
    assert over(said, {"num_attention_heads": 2}, weights="random").head_dim == 16, "said by the checkpoint: it stays"


def test_lists_by_layer_follow_the_depth_unless_they_say_more(tmp_path: Path) -> None:
    build("gemma3_text", {"num_hidden_layers": 12}).save_pretrained(tmp_path / "derived")
    assert "layer_types" in json.loads((tmp_path / "derived/config.json").read_text())
    cut = over(tmp_path / "derived", {"num_hidden_layers": 7}, weights="random")
    assert cut.layer_types == CONFIG_MAPPING["gemma3_text"](num_hidden_layers=7).layer_types
    build("gemma3_text", {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}).save_pretrained(
        tmp_path / "own"
    )
    with pytest.raises(ModelError, match="must be equal to the number of"):
        over(tmp_path / "own", {"num_hidden_layers": 7}, weights="random")


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LINEAR = {"rope_type": "linear", "factor": 2.0}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize("form", ["scratch", "old", "new"])
@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"rope_theta": 250000.0}, {"rope_type": "default", "rope_theta": 250000.0}),
        ({"rope_scaling": YARN}, {**YARN, "rope_theta": 5e5}),
        ({"rope_scaling": LINEAR, "rope_theta": 7e4}, {**LINEAR, "rope_theta": 7e4}),
        ({"rope_parameters": LINEAR}, {**LINEAR, "rope_theta": 5e5}),
    ],
)
def test_rotary_settings_under_the_names_of_older_files(
    form: str, config: dict[str, Any], wanted: dict[str, Any], tmp_path: Path
) -> None:
    """From scratch, on a config.json of transformers 4 and on one of transformers 5, which keeps them elsewhere."""
    if form == "scratch":
        theta = {} if "rope_theta" in config or "rope_parameters" in config else {"rope_theta": 5e5}
        parameters = {"rope_parameters": {**LINEAR, "rope_theta": 5e5}} if "rope_parameters" in config else {}
        found = build("llama", {**config, **theta, **parameters})
    else:
        write(tmp_path, OLD)
        if form == "new":
            AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
            assert "rope_theta" not in json.loads((tmp_path / "config.json").read_text())
        found = over(tmp_path, config)
    assert found.rope_parameters == wanted
    found.save_pretrained(tmp_path / "export")
    assert AutoConfig.from_pretrained(tmp_path / "export").rope_parameters == wanted


@pytest.mark.parametrize(
    ("config", "full", "sliding"),
    [
        ({"rope_theta": 2e6}, {"rope_type": "default", "rope_theta": 2e6}, LOCAL),
        ({"rope_local_base_freq": 3e4}, {"rope_type": "default", "rope_theta": 1e6}, {**LOCAL, "rope_theta": 3e4}),
        ({"rope_scaling": LINEAR}, {**LINEAR, "rope_theta": 1e6}, LOCAL),
    ],
)
def test_rotary_settings_by_kind_of_layer(
    config: dict[str, Any], full: dict[str, Any], sliding: dict[str, Any], tmp_path: Path
) -> None:
    build("gemma3_text", {"num_hidden_layers": 2}).save_pretrained(tmp_path)
    wanted = {"full_attention": full, "sliding_attention": sliding}
    assert over(tmp_path, config).rope_parameters == wanted
    assert build("gemma3_text", {"num_hidden_layers": 2, **config}).rope_parameters == wanted


def test_the_command_line_gives_objects_as_text() -> None:
    model = scratch("llama", {"rope_scaling": LINEAR, "num_key_value_heads": None})
    assert model.config == {"rope_scaling": json.dumps(LINEAR), "num_key_value_heads": "null"}
    assert load_config(model, vocabulary_size=9, overrides={}).rope_parameters == {**LINEAR, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"hiden_size": 3}, "LlamaConfig has no such field (did you mean 'hidden_size'?)"),
        ({"sliding_window": 3}, "LlamaConfig has no such field"),
        ({"rope_local_base_freq": 3.0}, "LlamaConfig has no such field"),
        ({"temperature": 0.5}, "does not act here: it belongs to generation"),
        ({"dtype": "bfloat16"}, "does not act here"),
        ({"use_cache": True}, "does not act here"),
        ({"num_labels": 5}, "the task sets num_labels itself, to 2"),
    ],
)
def test_fields_that_cannot_act_are_refused(config: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_config(scratch("llama", config), vocabulary_size=9, overrides={"num_labels": 2})
    name, value = next(iter(config.items()))
    assert caught.value.what.startswith(f"model.config[{name!r}]={value!r}")
    assert what in caught.value.what


def test_a_field_that_the_class_derives_itself_is_named() -> None:
    config = {"qk_rope_head_dim": 32, "head_dim": 80}
    found = build("deepseek_v2", config)
    assert overruled(found, scratch("deepseek_v2", config)) == [
        "model.config head_dim=80 does not act: DeepseekV2Config makes it 32"
    ]


def test_quantised_weights_are_not_trained(tmp_path: Path) -> None:
    write(tmp_path, {**OLD, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}})
    with pytest.raises(ModelError, match=r"its weights are quantised \(bitsandbytes\)"):
        over(tmp_path, {})
    assert not hasattr(over(tmp_path, {}, weights="random"), "quantization_config")
