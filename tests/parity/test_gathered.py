"""What ZeRO-3 holds gathered while a step is computed: a few layers, whether weights are trained or frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests import tiny
from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from tests.parity.worker import global_batches
from toolkit.ds_config.render import render
from toolkit.engine import device, process
from toolkit.models.model_size import model_size
from toolkit.recipe import Batch, Full, LoRA, Model, Parallel, Recipe
from toolkit.train.build import build_engine
from toolkit.train.progress import Display
from toolkit.train.run_folder import RunFolder

LAYERS = 6
STEPS = 3
"""DeepSpeed learns the order of the layers in the first, and fetches ahead from the second on."""
TUNINGS = {"full": Full(), "lora": LoRA(rank=4)}

Seen = tuple[str, int, bool]
"""(where, numbers that are gathered and not kept so, whether the output head is among them)."""


@pytest.fixture(scope="module")
def model(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of six layers, each large enough for ZeRO-3's limits to follow it; its head is not tied."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return tiny.save(LlamaForCausalLM(config), tokenizer, tmp_path_factory.mktemp("six_layers"))


def watched(rank: int, world_size: int, recipe: Recipe, folder: str) -> tuple[list[Seen], int, int]:
    """What is gathered at each layer's backward pass of the last step and after it; a layer's numbers; the limit."""
    inputs, steps = global_batches(recipe, STEPS)
    size = model_size(inputs.task.auto_class, inputs.model_config, {})
    config = render(recipe, device.target(world_size, wanted="cpu", model_ranks=1), size)
    me = process.from_environment(recipe.parallel)
    engine = build_engine(recipe, inputs, config, me, RunFolder(Path(folder)), Display(is_main=False))
    network: Any = engine.model
    seen: list[Seen] = []

    def look(where: str) -> None:
        there = [
            parameter
            for parameter in network.parameters()
            if parameter.ds_status.name != "NOT_AVAILABLE" and not parameter.ds_persist
        ]
        is_head = any(parameter is network.lm_head.weight for parameter in there)
        seen.append((where, sum(parameter.ds_numel for parameter in there), is_head))

    for index, layer in enumerate(network.model.layers):
        layer.register_full_backward_hook(lambda *_, index=index: look(f"backward {index}"))
    for batches in steps:
        seen.clear()
        engine.train_step(batches, range(len(batches)))
    look("after")
    engine.close()
    return seen, size.layer, config["zero_optimization"]["stage3_max_live_parameters"]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_few_layers_are_gathered_at_a_time(
    tuning: str, checkpointing: bool, model: Path, chat_file: Path, tmp_path: Path
) -> None:
    """Others report that recomputation leaves frozen weights gathered. Here nothing piles up towards the first layer."""
    one = recipe(
        "causal_lm",
        model,
        chat_file,
        model=Model(path=str(model), activation_checkpointing=checkpointing),
        tuning=TUNINGS[tuning],
        parallel=Parallel(zero_stage=3),
        batch=Batch(global_size=2, micro_size=1, sequence_length=128),
    )
    [(seen, layer, limit)] = run_distributed(watched, 1, one, str(tmp_path))
    assert limit == 2 * layer
    order = [where for where, *_ in seen]
    assert set(order) == {"after", *(f"backward {index}" for index in range(LAYERS))}
    for where, numbers, has_head in seen:
        assert numbers <= limit + layer, (where, numbers)
        if where in {f"backward {index}" for index in range(LAYERS - 2)}:
            # Used up before the layers' backward passes begin, and as large as several of them in a real model.
            assert not has_head, where
    assert seen[-1][1] == 0
