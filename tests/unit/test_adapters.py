"""Adapters against plain peft: loss, gradients, what is drawn, what is trained, what is refused. One process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from toolkit.errors import ModelError, RecipeError
from toolkit.models.adapter_plan import AdapterPlan, plan_adapters
from toolkit.models.adapters import (
    ADAPTER,
    adapter_config,
    adapters_off,
    add_adapters,
    file_name,
    fill_adapters,
    is_adapter,
)
from toolkit.models.files import check_files
from toolkit.models.heads import token_loss, use_loss_head
from toolkit.parity import reference
from toolkit.recipe import Batch, Checkpoint, Data, LoRA, Model, Parallel, Recipe

TUNINGS = {
    "all-linear": LoRA(rank=4),
    "some": LoRA(rank=4, alpha=3.0, target_modules=("q_proj", "layers.1.mlp.down_proj")),
    "rslora": LoRA(rank=4, use_rslora=True),
    "dora": LoRA(rank=4, use_dora=True),
    "norms": LoRA(rank=4, modules_to_save=("input_layernorm", "model.norm")),
    "gaussian": LoRA(rank=4, initialisation="gaussian"),
}


def batch(vocabulary: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, vocabulary, (2, 24), generator=source)
    targets = nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    targets[0, :9] = -100
    return {"input_ids": tokens, "position_ids": torch.arange(24).expand(2, -1), "targets": targets}


def built(model: nn.Module, plan: AdapterPlan, seed: int = 7) -> nn.Module:
    add_adapters(model, plan)
    fill_adapters(model, plan, seed)
    return model


def lively(model: nn.Module) -> None:
    """B as training leaves it: at zero A has no gradient."""
    source = torch.Generator().manual_seed(2)
    for name, parameter in sorted(model.named_parameters()):
        if ".lora_B." in name:
            parameter.data.normal_(std=0.05, generator=source)


def of_peft(model: Any, plan: AdapterPlan, values: dict[str, torch.Tensor]) -> Any:
    """peft's own model around `model`, holding `values` by the names of its files."""
    tuned = peft.get_peft_model(model, adapter_config(plan, base=None, task_type="CAUSAL_LM"))
    found = peft.set_peft_model_state_dict(tuned, values)
    assert not found.unexpected_keys
    assert peft.get_peft_model_state_dict(tuned).keys() == values.keys()
    return tuned


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", TUNINGS)
def test_loss_and_gradients_are_those_of_peft(name: str, tiny_llama_dir: Path) -> None:
    """1e-6 in fp32; the names that peft gives the same numbers are those of `file_name`."""
    tuning = TUNINGS[name]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    plan = plan_adapters(AutoModelForCausalLM, model.config, tuning, trains_head=False)
    ours = built(model, plan)
    lively(ours)
    values = {file_name(key): value.detach().clone() for key, value in trained(ours).items()}
    theirs = of_peft(AutoModelForCausalLM.from_pretrained(tiny_llama_dir), plan, values)
    use_loss_head(ours)
    given = batch(model.config.vocab_size)
    loss = token_loss(
        ours,
        {key: given[key] for key in ("input_ids", "position_ids")},
        given["targets"],
        label_smoothing=0.0,
        gradient_scale=1.0,
    )
    loss.backward()
    wanted = reference.token_losses(theirs, given)
    wanted.backward()
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)
    # peft trains a copy of a module in modules_to_save, under a name of its own.
    named = {key.replace(f".modules_to_save.{ADAPTER}.", "."): value for key, value in trained(theirs).items()}
    found = {f"base_model.model.{key}": value.grad for key, value in trained(ours).items()}
    assert found.keys() == named.keys()
    apart = [gradient - named[key].grad for key, gradient in found.items()]
    whole = [named[key].grad for key in found]
    assert torch.nn.utils.get_total_norm(apart) < 1e-6 * torch.nn.utils.get_total_norm(whole)
    assert all(parameter.grad is None for parameter in ours.parameters() if not parameter.requires_grad)


@pytest.mark.parametrize(("name", "spread"), [("all-linear", 1 / math.sqrt(3 * 64)), ("gaussian", 1 / 4)])
def test_adapters_are_drawn_as_peft_draws_them(name: str, spread: float, tiny_llama_dir: Path) -> None:
    """A of inputs 64 with the deviation of peft's, B zero; by seed and name, whatever else there is."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    plan = plan_adapters(AutoModelForCausalLM, model.config, TUNINGS[name], trains_head=False)
    ours = dict(built(model, plan).named_parameters())
    plain = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llama_dir), adapter_config(plan, base=None, task_type="CAUSAL_LM")
    )
    drawn = {}
    for who, named in (("ours", ours), ("theirs", dict(plain.get_base_model().named_parameters()))):
        some = [value.detach() for key, value in named.items() if ".lora_A." in key and value.shape[1] == 64]
        drawn[who] = torch.cat(some).flatten()
        assert all(not value.any() for key, value in named.items() if ".lora_B." in key)
    for values in drawn.values():
        # Of n draws the deviation is known to one part in sqrt(2 n).
        assert float(values.std()) == pytest.approx(spread, rel=5 / math.sqrt(2 * len(values)))
    assert float(drawn["ours"].abs().max()) == pytest.approx(float(drawn["theirs"].abs().max()), rel=0.3)
    few = LoRA(rank=4, target_modules=("o_proj",), initialisation=TUNINGS[name].initialisation)
    alone = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    small = plan_adapters(AutoModelForCausalLM, alone.config, few, trains_head=False)
    key = f"model.layers.1.self_attn.o_proj.lora_A.{ADAPTER}.weight"
    assert torch.equal(dict(built(alone, small).named_parameters())[key], ours[key])
    assert not torch.equal(ours[key], ours[key.replace("layers.1", "layers.0")])


def test_what_is_trained_is_counted_and_said(tiny_llama_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    plan = plan_adapters(AutoModelForCausalLM, model.config, TUNINGS["norms"], trains_head=False)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    tuned = built(model, plan)
    count = sum(parameter.numel() for parameter in trained(tuned).values())
    assert (plan.trained, plan.total) == (count, sum(parameter.numel() for parameter in tuned.parameters()))
    assert plan.total - plan.trained + 3 * 64 == numbers
    assert plan.describe() == (
        f"training 8.4 K of 123.2 K parameters ({count / plan.total:.2%}): LoRA r=4 alpha=32 on 14 layers "
        "(down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj), and model.layers.0.input_layernorm, model.layers.1.input_layernorm, "
        "model.norm whole"
    )
    assert sorted(name for name in trained(tuned) if not is_adapter(name)) == sorted(plan.whole)


def test_a_classifiers_head_is_trained_whole(tiny_bert_dir: Path) -> None:
    """And its pooler, which a checkpoint may lack; every layer of the encoder has adapters."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=3)
    plan = plan_adapters(AutoModelForSequenceClassification, model.config, LoRA(rank=2), trains_head=True)
    assert plan.modules == ("bert.pooler", "classifier")
    assert len(plan.targets) == 12 and all(name.startswith("bert.encoder.layer.") for name in plan.targets)
    names = trained(built(model, plan))
    assert {name for name in names if not is_adapter(name)} == {
        f"{module}.{leaf}" for module in ("bert.pooler.dense", "classifier") for leaf in ("weight", "bias")
    }
    assert file_name("classifier.weight") == "base_model.model.classifier.weight"


def test_a_head_that_the_checkpoint_lacks_is_trained_whole(tiny_bert_dir: Path, tmp_path: Path) -> None:
    """Found in the files: drawn at random and frozen it would be of no use. One that is there stays frozen."""
    kind = AutoModelForQuestionAnswering
    config = kind.from_pretrained(tiny_bert_dir).config
    lacking = plan_adapters(kind, config, LoRA(rank=2), trains_head=False, source=str(tiny_bert_dir))
    assert lacking.modules == ("qa_outputs",)
    kind.from_pretrained(tiny_bert_dir).save_pretrained(tmp_path)
    assert plan_adapters(kind, config, LoRA(rank=2), trains_head=False, source=str(tmp_path)).whole == ()


def test_transposed_layers_have_adapters_too() -> None:
    """GPT-2's Conv1D keeps [inputs, outputs]; the shapes of A and B are those of the layer all the same."""
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=32))
    plan = plan_adapters(AutoModelForCausalLM, model.config, LoRA(rank=2), trains_head=False)
    assert plan.transposed and plan.short == ("c_attn", "c_fc", "c_proj")
    named = trained(built(model, plan))
    assert named[f"transformer.h.0.attn.c_attn.lora_A.{ADAPTER}.weight"].shape == (2, 32)
    assert named[f"transformer.h.0.attn.c_attn.lora_B.{ADAPTER}.weight"].shape == (96, 2)


def test_short_names_tell_the_layers_from_all_others() -> None:
    """GPT-2 has c_proj in attention and in the MLP: one of them alone needs more of its name."""
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=32)
    plan = plan_adapters(AutoModelForCausalLM, config, LoRA(target_modules=("mlp.c_proj",)), trains_head=False)
    assert plan.short == ("mlp.c_proj",) and len(plan.targets) == 2
    one = plan_adapters(AutoModelForCausalLM, config, LoRA(target_modules=("h.1.mlp.c_proj",)), trains_head=False)
    assert one.targets == ("transformer.h.1.mlp.c_proj",) and one.short == ("1.mlp.c_proj",)


def test_without_its_adapters_a_model_is_its_checkpoint(tiny_llama_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    given = {key: value for key, value in batch(model.config.vocab_size).items() if key != "targets"}
    with torch.no_grad():
        before = model(**given).logits
        plan = plan_adapters(AutoModelForCausalLM, model.config, TUNINGS["all-linear"], trains_head=False)
        lively(built(model, plan))
        tuned = model(**given).logits
        with adapters_off(model):
            off = model(**given).logits
        assert torch.equal(off, before)
        assert not torch.allclose(tuned, before, atol=1e-4)
        assert torch.equal(model(**given).logits, tuned)
    assert len(trained(model)) == 28


def test_what_is_trained_whole_cannot_be_switched_off(tiny_llama_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    with pytest.raises(ModelError, match="has no adapters to switch off"), adapters_off(model):
        pass
    plan = plan_adapters(AutoModelForCausalLM, model.config, TUNINGS["norms"], trains_head=False)
    built(model, plan)
    with (
        pytest.raises(ModelError, match=r"model\.layers\.0\.input_layernorm\.weight is trained whole"),
        adapters_off(model),
    ):
        pass


@pytest.mark.parametrize(
    ("tuning", "what", "do"),
    [
        (
            LoRA(target_modules=("q_prj",)),
            "tuning.target_modules has 'q_prj', in which no name of a linear layer ends (did you mean 'q_proj'?)",
            "correct tuning.target_modules, or set it to 'all-linear'",
        ),
        (
            LoRA(target_modules=("lm_head",)),
            "tuning.target_modules has 'lm_head', in which no name of a linear layer ends",
            "correct tuning.target_modules, or set it to 'all-linear'",
        ),
        (
            LoRA(target_modules=("q_proj,v_proj",)),
            "tuning.target_modules has 'q_proj,v_proj', in which no name of a linear layer ends "
            "(several are separated by spaces: q_proj v_proj)",
            "correct tuning.target_modules, or set it to 'all-linear'",
        ),
        (
            LoRA(modules_to_save=("nrm",)),
            "tuning.modules_to_save has 'nrm', in which no name of a module with weights ends (did you mean 'norm'?)",
            "correct tuning.modules_to_save",
        ),
        (
            LoRA(modules_to_save=("lm_head",)),
            "lm_head.weight is one weight with model.embed_tokens.weight: an adapter that holds one of the two is another model",
            "leave it out of tuning.modules_to_save, or train every weight with tuning.name='full'",
        ),
        (
            LoRA(modules_to_save=("embed_tokens",)),
            "model.embed_tokens.weight is one weight with lm_head.weight: an adapter that holds one of the two is another model",
            "leave it out of tuning.modules_to_save, or train every weight with tuning.name='full'",
        ),
    ],
)
def test_names_that_fit_nothing_are_refused(tuning: LoRA, what: str, do: str, tiny_llama_dir: Path) -> None:
    config = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).config
    with pytest.raises(ModelError) as caught:
        plan_adapters(AutoModelForCausalLM, config, tuning, trains_head=False)
    assert caught.value.what == what
    assert caught.value.do == do
    assert caught.value.exit_code == 2


def test_a_layer_is_adapted_or_trained_whole() -> None:
    with pytest.raises(RecipeError, match="both have 'q_proj'"):
        LoRA(target_modules=("q_proj",), modules_to_save=("q_proj",))
    with pytest.raises(RecipeError, match="is empty"):
        LoRA(target_modules=())
    with pytest.raises(RecipeError) as caught:
        LoRA(target_modules="q_proj")
    assert caught.value.what == "tuning.target_modules='q_proj'"
    assert caught.value.expected == 'names in parentheses, each in quotes and with a comma after it: ("q_proj",)'


@pytest.mark.parametrize(
    ("changes", "what", "do"),
    [
        (
            {"tuning": LoRA(use_dora=True), "parallel": Parallel(zero_stage=3)},
            "tuning.use_dora=True with parallel.zero_stage=3",
            "set parallel.zero_stage=2 and parallel.tensor=1, or tuning.use_dora=False",
        ),
        (
            {"tuning": LoRA(use_dora=True), "parallel": Parallel(tensor=2)},
            "tuning.use_dora=True with parallel.tensor=2",
            "set parallel.zero_stage=2 and parallel.tensor=1, or tuning.use_dora=False",
        ),
        (
            {"tuning": LoRA(), "model": Model(path="m", weights="random")},
            "tuning.name='lora' with model.weights='random' and checkpoint.export=True",
            "set checkpoint.merge=True, or checkpoint.export=False, or take a checkpoint with model.path",
        ),
        (
            {"checkpoint": Checkpoint(merge=True)},
            "checkpoint.merge=True has no effect with checkpoint.export=True, tuning.name='full'",
            "remove checkpoint.merge from the recipe (on the command line: --checkpoint.merge False)",
        ),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes: dict[str, Any], what: str, do: str) -> None:
    plain: dict[str, Any] = {
        "model": Model(path="m"),
        "data": Data(train="d"),
        "batch": Batch(global_size=8),
        "steps": 4,
    }
    with pytest.raises(RecipeError) as caught:
        Recipe(**{**plain, **changes})
    assert (caught.value.what, caught.value.do) == (what, do)


def test_an_adapter_is_no_model(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """As model.path it is named for what it is, with the command that makes a model of it."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="holds an adapter, not a model") as caught:
        check_files("model.path", str(tmp_path))
    assert "toolkit export --merge RUN OUT" in caught.value.do
    assert caught.value.exit_code == 2
