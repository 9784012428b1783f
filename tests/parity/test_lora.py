"""LoRA against plain peft: curves under every strategy, what an export holds, and what peft makes of it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.distributed import run_distributed
from tests.parity.strategies import OPTIMIZER, recipe
from tests.parity.test_compile import run_compiled
from tests.parity.worker import export_weights, global_batches, read_metrics, run_recipe
from tests.processor import require_number_format
from toolkit.checkpoint.export import export
from toolkit.ds_config.render import render
from toolkit.engine import device, process
from toolkit.errors import CheckpointError
from toolkit.models.adapters import ADAPTER, adapter_layers, adapters_off, fill_adapters, is_adapter
from toolkit.models.shards import shard_of
from toolkit.parity import reference
from toolkit.parity.report import deviation
from toolkit.parity.strategies import STRATEGIES, Strategy
from toolkit.recipe import Checkpoint, Parallel, Precision, Recipe
from toolkit.recipe.schedules import factor
from toolkit.recipe.tuning import LoRA
from toolkit.train.build import build_engine
from toolkit.train.progress import Display
from toolkit.train.run_folder import RunFolder

STEPS = 6
# B begins at zero, and A's gradient with it: a rate at which both move.
FAST = OPTIMIZER.model_copy(update={"learning_rate": 1e-2})
TUNING = LoRA(rank=4, alpha=8, target_modules=("q_proj", "o_proj", "up_proj", "down_proj"), use_rslora=True)
CURVES: dict[str, tuple[int, Strategy]] = {
    "zero0": (1, STRATEGIES["zero0"]),
    **{
        name: (STRATEGIES[name].world_size, STRATEGIES[name])
        for name in ("zero2", "zero2_offload", "zero3", "zero3_offload_param", "pp2", "tp2", "sp2")
    },
    "tp2_zero3": (4, STRATEGIES["tp2_zero3"]),
}


def plain(model: Any, tuning: LoRA, **fields: Any) -> Any:
    """What peft makes of `model` by itself."""
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=tuning.rank,
            lora_alpha=tuning.alpha,
            target_modules="all-linear" if tuning.target_modules == "all-linear" else list(tuning.target_modules),
            use_rslora=tuning.use_rslora,
            use_dora=tuning.use_dora,
            **fields,
        ),
    )


def judge(rank: int, world_size: int, recipe: Recipe, task_type: str) -> reference.Curve:
    """Plain PyTorch and plain peft, from the adapters that the run begins with."""
    inputs, steps = global_batches(recipe, recipe.steps or 0)
    kind = AutoModelForCausalLM if task_type == "CAUSAL_LM" else AutoModelForSequenceClassification
    model = kind.from_pretrained(str(recipe.model.path), config=inputs.model_config, dtype=torch.float32)
    assert isinstance(recipe.tuning, LoRA)
    tuned = plain(model, recipe.tuning, task_type=task_type)
    # The starting point is not what is compared.
    fill_adapters(tuned.get_base_model(), inputs.adapters, recipe.seed)
    optimizer = recipe.optimizer
    return reference.train(
        tuned,
        steps,
        lambda groups: torch.optim.AdamW(groups, lr=1.0),
        lambda step: optimizer.learning_rate * factor(recipe.schedule, step, recipe.steps or 0),
        dtype=recipe.precision.dtype,
        max_grad_norm=optimizer.max_grad_norm,
        weight_decay=optimizer.weight_decay,
    )


def lora(model: Path, data: Path, /, **changes: Any) -> Recipe:
    return recipe("causal_lm", model, data, **({"tuning": TUNING, "steps": STEPS, "optimizer": FAST} | changes))


@dataclasses.dataclass(frozen=True)
class Ground:
    folder: Path
    recipe: Recipe
    curve: reference.Curve


@pytest.fixture(scope="module")
def ground(tiny_llama_dir: Path, chat_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A run of every strategy of CURVES, in a folder of its name, and the judge's curve."""
    folder = tmp_path_factory.mktemp("lora")
    sizes = sorted({world_size for world_size, _ in CURVES.values()})
    checkpoint = Checkpoint(export_dtype="fp32")
    for size in sizes:
        jobs = [
            (
                lora(tiny_llama_dir, chat_file, parallel=strategy.parallel, checkpoint=checkpoint),
                str(folder / name),
                None,
            )
            for name, (world_size, strategy) in CURVES.items()
            if world_size == size
        ]
        run_distributed(run_recipe, size, jobs, timeout_s=300)
    one = lora(tiny_llama_dir, chat_file)
    return Ground(folder, one, run_distributed(judge, 1, one, "CAUSAL_LM")[0])


@pytest.mark.parametrize("name", CURVES)
def test_every_strategy_trains_what_peft_trains(name: str, ground: Ground) -> None:
    records = read_metrics(ground.folder / name)
    assert deviation([record["loss"] for record in records], ground.curve.losses) < 1e-6
    assert deviation([record["grad_norm"] for record in records], ground.curve.norms) < 1e-5
    assert ground.curve.losses[-1] < ground.curve.losses[0] - 0.05


@pytest.mark.parametrize("name", CURVES)
def test_every_export_is_an_adapter_that_peft_loads(name: str, ground: Ground, tiny_llama_dir: Path) -> None:
    """With the judge's weights, under peft's names, none missing and none unexpected."""
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    out = ground.folder / name / "export"
    loaded = peft.PeftModel.from_pretrained(base, out)
    found = {key: value for key, value in loaded.named_parameters() if "lora_" in key}
    assert found.keys() == ground.curve.weights.keys()
    assert export_weights(out).keys() == {key.replace(f".{ADAPTER}.", ".") for key in found}
    for key, value in found.items():
        torch.testing.assert_close(value, ground.curve.weights[key], rtol=0, atol=2e-6)
    assert (out / "tokenizer.json").is_file()
    assert not (out / "config.json").exists()


def test_a_merged_export_is_what_peft_merges(ground: Ground, tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Bit for bit, in fp32 and rounded from there."""
    run = ground.folder / "tp2"
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    wanted = peft.PeftModel.from_pretrained(base, run / "export").merge_and_unload().state_dict()
    for dtype, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        out = tmp_path / dtype
        export(run, out, dtype, merge=True)
        found = AutoModelForCausalLM.from_pretrained(out, dtype=kind).state_dict()
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(found[name], value.to(kind)), name
        assert not (out / "adapter_config.json").exists()


def test_an_export_is_merged_with_no_other_base(ground: Ground, tiny_llama_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(ground.folder / "zero2", run)
    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    model.save_pretrained(other)
    file = run / "model" / "adapter_config.json"
    file.write_text(file.read_text().replace(str(tiny_llama_dir), str(other)))
    with pytest.raises(CheckpointError, match=r"are not those that the adapters in .* were trained beside"):
        export(run, tmp_path / "out", "fp32", merge=True)


def test_compiled_layers_train_the_same(ground: Ground, tmp_path: Path) -> None:
    """Under ZeRO-3 each layer is gathered whole; the first one's inputs come from a frozen embedding."""
    compiled = {
        "model": ground.recipe.model.model_copy(update={"compile": True}),
        "parallel": Parallel(zero_stage=3, param_persistence_threshold=100),
    }
    run = ground.recipe.model_copy(update=compiled)
    [(losses, calls)] = run_distributed(run_compiled, 1, [(run, str(tmp_path), None)], timeout_s=300)[0]
    assert deviation(losses, ground.curve.losses) < 1e-6
    assert calls >= 2 * STEPS


def dropped(rank: int, world_size: int, recipe: Recipe, folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each layer's dropout lets through of ones, in one forward pass; and whole adapters after two steps."""
    inputs, steps = global_batches(recipe, 2)
    me, silent = process.from_environment(recipe.parallel), Display(is_main=False)
    config = render(recipe, device.target(world_size, wanted="cpu", model_ranks=world_size))
    engine = build_engine(recipe, inputs, config, me, RunFolder(Path(folder)), silent)
    kept: dict[str, torch.Tensor] = {}

    def note(name: str, given: torch.Tensor, output: torch.Tensor) -> None:
        kept.setdefault(name, (output != 0) | (given == 0))

    for name, layer in adapter_layers(engine.model):
        layer.lora_dropout[ADAPTER].register_forward_hook(
            lambda _, given, output, name=name: note(name, given[0], output)
        )
    for batches in steps:
        engine.train_step(batches, range(len(batches)))
    whole = {
        name: parameter.detach().clone()
        for name, parameter in engine.model.named_parameters()
        if is_adapter(name) and shard_of(parameter) is None
    }
    engine.close()
    return kept, whole


def test_dropout_of_adapters_under_tensor_parallelism(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """Of a whole input all ranks drop the same, of their own parts of one each its own; what is whole stays the same."""
    one = lora(tiny_llama_dir, chat_file, tuning=LoRA(rank=4, dropout=0.5), parallel=Parallel(zero_stage=1, tensor=2))
    (first, whole), (second, others) = run_distributed(dropped, 2, one, str(tmp_path))
    assert len(first) == 14 and len(whole) == 14
    for name, mask in first.items():
        is_local = name.endswith(("o_proj", "down_proj"))
        assert torch.equal(mask, second[name]) != is_local, name
        assert float(mask.float().mean()) == pytest.approx(0.5, abs=0.05)
    assert any(
        not torch.equal(first["model.layers.0.self_attn.q_proj"], first[f"model.layers.0.self_attn.{other}"])
        for other in ("k_proj", "v_proj")
    )
    for name, value in whole.items():
        assert torch.equal(value, others[name]), name
        assert value.any(), name


def switched(rank: int, world_size: int, recipe: Recipe, folder: str) -> tuple[list[float], list[torch.Tensor]]:
    """Losses of four steps, and the hidden states of a text between them: with adapters, without, and with them again."""
    inputs, steps = global_batches(recipe, 4)
    me, silent = process.from_environment(recipe.parallel), Display(is_main=False)
    config = render(recipe, device.target(world_size, wanted="cpu", model_ranks=world_size))
    engine = build_engine(recipe, inputs, config, me, RunFolder(Path(folder)), silent)
    tokens = torch.arange(5, 37).unsqueeze(0)

    def without(model: Any) -> Any:
        with adapters_off(model):
            return [hidden(model)]

    def hidden(model: Any) -> torch.Tensor:
        found: torch.Tensor = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        return found.detach().clone()

    # Two steps first: the warm-up's first one moves nothing.
    losses = [engine.train_step(batches, range(len(batches))).loss for batches in steps[:2]]
    seen: list[torch.Tensor] = []
    for look in (lambda model: [hidden(model)], without, lambda model: [hidden(model)]):
        seen += engine.call(look)
    losses += [engine.train_step(batches, range(len(batches))).loss for batches in steps[2:]]
    engine.close()
    return losses, seen


@pytest.mark.parametrize(("strategy", "world_size"), [("zero3", 1), ("tp2", 2)])
def test_adapters_can_be_switched_off_for_a_while(
    strategy: str, world_size: int, ground: Ground, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    """What is computed meanwhile is the checkpoint's, as a reference for preferences needs it; training goes on as if nothing had been."""
    one = ground.recipe.model_copy(update={"parallel": STRATEGIES[strategy].parallel})
    losses, (before, off, after) = run_distributed(switched, world_size, one, str(tmp_path))[0]
    assert deviation(losses, ground.curve.losses[:4]) < 1e-6
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    with torch.no_grad():
        wanted = model.base_model(input_ids=torch.arange(5, 37).unsqueeze(0)).last_hidden_state
    torch.testing.assert_close(off, wanted, rtol=0, atol=2e-6)
    assert torch.equal(before, after)
    assert float((before - off).abs().max()) > 1e-4


def test_a_classifiers_adapter_has_its_new_head(tiny_bert_dir: Path, classification_file: Path, tmp_path: Path) -> None:
    """Trained as peft trains it; the adapter beside its base, with the labels' number, is the merged model."""
    one = recipe(
        "sequence_classification",
        tiny_bert_dir,
        classification_file,
        tuning=LoRA(rank=4),
        optimizer=FAST,
        steps=STEPS,
        checkpoint=Checkpoint(export_dtype="fp32"),
    )
    run_distributed(run_recipe, 1, [(one, str(tmp_path / "run"), None)])
    export(tmp_path / "run", tmp_path / "merged", "fp32", merge=True)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=2)
    beside = peft.PeftModel.from_pretrained(base, tmp_path / "run" / "export").eval()
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert sorted(merged.config.id2label.values()) == ["class", "function"]
    tokens = torch.arange(5, 37).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(beside(tokens).logits, merged(tokens).logits, rtol=0, atol=2e-6)
        assert float(merged(tokens).logits.abs().max()) > 0.05
    wanted = beside.merge_and_unload().state_dict()
    for name, value in merged.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def judge_in_fp8(rank: int, world_size: int, recipe: Recipe) -> list[float]:
    """Losses of plain PyTorch with torchao's layers in the stack, and plain peft around them."""
    import torchao.float8 as torchao

    inputs, steps = global_batches(recipe, recipe.steps or 0)
    model = AutoModelForCausalLM.from_pretrained(str(recipe.model.path), dtype=torch.float32)
    config = dataclasses.replace(torchao.Float8LinearConfig.from_recipe_name("rowwise"), emulate=True)
    torchao.convert_to_float8_training(model.model.layers, config=config)
    assert isinstance(recipe.tuning, LoRA)
    tuned = plain(model, recipe.tuning, task_type="CAUSAL_LM")
    fill_adapters(tuned.get_base_model(), inputs.adapters, recipe.seed)
    optimizer = recipe.optimizer
    return reference.train(
        tuned,
        steps,
        lambda groups: torch.optim.AdamW(groups, lr=1.0),
        lambda step: optimizer.learning_rate * factor(recipe.schedule, step, recipe.steps or 0),
        dtype="bf16",
        max_grad_norm=optimizer.max_grad_norm,
        weight_decay=optimizer.weight_decay,
    ).losses


def test_adapters_beside_layers_in_fp8(ground: Ground, tmp_path: Path) -> None:
    """The frozen layers multiply in fp8, the adapters in bf16. Limits are those of test_fp8."""
    pytest.importorskip("torchao", reason="torchao is not installed: pip install 'toolkit[torchao]'")
    from tests.parity.test_fp8 import EXACT, TOLERANCE, on_fp8  # a module that is skipped without it

    require_number_format("bf16")
    one = ground.recipe.model_copy(update={"precision": Precision(dtype="fp8"), "parallel": Parallel(zero_stage=3)})
    wanted = run_distributed(judge_in_fp8, 1, one)[0]
    found = [record["loss"] for record in run_distributed(on_fp8, 1, [(one, str(tmp_path), None)])[0][0]]
    assert deviation(found[:2], wanted[:2]) < EXACT
    assert deviation(found, wanted) < TOLERANCE
