"""Generated tokens are those of transformers' own `generate`, one prompt at a time, under every engine."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from tests import tiny
from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from toolkit.models.decoding import GenerationSettings, left_padded
from toolkit.parity.strategies import STRATEGIES, Strategy
from toolkit.recipe import Batch, Data, Recipe

TOPOLOGIES = {
    "one rank": Strategy(1, {"zero_stage": 0}),
    **{name: STRATEGIES[name] for name in ("zero2", "zero3", "pp2", "tp2", "sp2_zero3", "pp2_tp2")},
}
STOPS = tuple(range(9, 640, 10))
"""Enough of them that answers end at different places."""
SETTINGS = {
    "greedy": GenerationSettings(16, stop_ids=STOPS, pad_id=0),
    "beams": GenerationSettings(9, num_beams=3, length_penalty=0.7, stop_ids=STOPS, pad_id=0),
    "sampled": GenerationSettings(8, temperature=0.8, top_k=20, top_p=0.95, seed=3, stop_ids=STOPS, pad_id=0),
}

Answers = dict[str, list[list[int]]]


def prompts() -> list[list[int]]:
    """Seven of very different lengths."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(70, 600, (length,), generator=generator).tolist() for length in (3, 19, 1, 8, 30, 2, 11)]


def answers_of(engine: Any, me: Any, *, decoder: bool = True) -> list[Answers]:
    """This rank's share of the answers, in one batch and one by one: {settings: one per prompt}. Ranks have 4 and 3 prompts."""
    mine = prompts()[me.data_rank :: me.mesh.data]
    found = []
    for size in (len(mine), 1)[: 2 if decoder else 1]:
        # A rank whose prompts have run out takes part with one that nobody asked for.
        count = -(-len(prompts()) // me.mesh.data) if size == 1 else size
        batches = [[*mine, [5]][start : start + size] for start in range(0, count, size)]
        of_size: Answers = {}
        for name, settings in SETTINGS.items():
            if name == "beams" and size == 1:
                continue  # costs much and shows nothing more
            of_size[name] = []
            for batch in batches:
                padded = left_padded(batch, 0)
                if not decoder:  # an encoder's input may be padded behind it
                    lengths = padded["attention_mask"].sum(1).tolist()
                    padded = {
                        key: torch.stack([row.roll(n - row.shape[0]) for row, n in zip(rows, lengths, strict=True)])
                        for key, rows in padded.items()
                    }
                of_size[name] += engine.generate(padded, settings)
            of_size[name] = of_size[name][: len(mine)]
        found.append(of_size)
    return found


def generate_all(rank: int, world_size: int, recipes: list[Recipe], folder: str) -> list[tuple[int, list[Answers]]]:
    """(data rank, answers) for each recipe."""
    from toolkit.ds_config.render import render
    from toolkit.engine import device, process
    from toolkit.recipe.mesh import model_ranks
    from toolkit.train.build import build_engine
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display
    from toolkit.train.run_folder import RunFolder

    found, display = [], Display(is_main=False)
    for index, run in enumerate(recipes):
        me = process.from_environment(run.parallel)
        config = render(run, device.target(world_size, wanted="cpu", model_ranks=model_ranks(run.parallel)))
        inputs = prepare_inputs(run, me.data_rank, me.mesh.data, display)
        process.start(me)
        place = RunFolder(Path(folder) / f"{world_size}-{index}")
        if me.is_main:
            place.path.mkdir()
        process.barrier()
        engine = build_engine(run, inputs, config, me, place, display)
        found.append((me.data_rank, answers_of(engine, me)))
        engine.close()
    return found


def reference(model: Any, *, decoder: bool = True) -> Answers:
    """transformers' own, one prompt at a time."""
    found: Answers = {}
    model.eval()
    for name in ("greedy", "beams"):
        settings, found[name] = SETTINGS[name], []
        for prompt in prompts():
            tokens = torch.tensor([prompt])
            whole = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=settings.max_new_tokens,
                num_beams=settings.num_beams,
                length_penalty=settings.length_penalty,
                do_sample=False,
                eos_token_id=list(STOPS),
                pad_token_id=0,
            )[0]
            answer = whole[len(prompt) if decoder else 1 :].tolist()
            ends = [place for place, token in enumerate(answer) if token in STOPS]
            found[name].append(answer[: ends[0] + 1] if ends else answer)
    return found


def in_order(of_ranks: list[tuple[int, list[Answers]]], size_index: int, name: str) -> list[list[int]]:
    """The answers of all data ranks in the order of the prompts; ranks of one replica agree."""
    by_rank: dict[int, list[list[int]]] = {}
    for data_rank, answers in of_ranks:
        assert by_rank.setdefault(data_rank, answers[size_index][name]) == answers[size_index][name]
    found: list[list[int]] = [[]] * len(prompts())
    for data_rank, rows in by_rank.items():
        found[data_rank :: len(by_rank)] = rows
    return found


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny.byte_tokenizer()
    model = tiny.llama(tokenizer, num_layers=3)
    model.config.tie_word_embeddings = False
    return tiny.save(tiny.lively(type(model)(model.config)), tokenizer, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def answers(llama_dir: Path, chat_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """topology -> (data rank, answers) of each rank."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for name, strategy in TOPOLOGIES.items():
        by_size[strategy.world_size].append(name)
    found: dict[str, Any] = {}
    for world_size, names in by_size.items():
        runs = [
            recipe(
                "causal_lm",
                llama_dir,
                chat_file,
                parallel=TOPOLOGIES[name].parallel,
                data=Data(train=str(chat_file), prefetch=0),
                batch=Batch(global_size=4, micro_size=1, sequence_length=256),
                steps=6,
            )
            for name in names
        ]
        folder = str(tmp_path_factory.mktemp("generation"))
        of_ranks = run_distributed(generate_all, world_size, runs, folder, timeout_s=240)
        found |= {name: [rank[index] for rank in of_ranks] for index, name in enumerate(names)}
    return found


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_topology_says_what_transformers_says(topology: str, answers: dict[str, Any], llama_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    wanted = reference(AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.float32))
    assert len({len(answer) for answer in wanted["greedy"]}) > 3, "answers of different lengths"
    assert len({token for answer in wanted["greedy"] for token in answer}) > 20, "not one token for ever"
    assert wanted["beams"] != [answer[:9] for answer in wanted["greedy"]], "beams matter"
    for name, size_index in (("greedy", 0), ("greedy", 1), ("beams", 0)):
        assert in_order(answers[topology], size_index, name) == wanted[name], (name, size_index)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_what_is_drawn_depends_on_the_prompt_alone(topology: str, answers: dict[str, Any]) -> None:
    wanted = in_order(answers["one rank"], 0, "sampled")
    assert len({token for answer in wanted for token in answer}) > 20
    assert wanted != in_order(answers["one rank"], 0, "greedy")
    for size_index in (0, 1):
        assert in_order(answers[topology], size_index, "sampled") == wanted


def encoder_decoders() -> dict[str, Any]:
    sizes: dict[str, Any] = {"vocab_size": 640, "d_model": 32, "pad_token_id": 0, "tie_word_embeddings": False}
    t5 = T5Config(**sizes, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, eos_token_id=1)
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    bart = BartConfig(
        **sizes, **layers, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
        bos_token_id=3, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None, forced_bos_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    models = {
        "t5": tiny.lively(T5ForConditionalGeneration(t5), 0.3),
        "bart": tiny.lively(BartForConditionalGeneration(bart), 0.15),
    }
    with torch.no_grad():
        # T5 keeps what an embedding adds: else each token would say itself again.
        models["t5"].get_input_embeddings().weight.mul_(0.05)
    return models


def generate_texts(rank: int, world_size: int, run: Recipe) -> list[tuple[int, list[Answers]]]:
    """(data rank, answers) for each of `encoder_decoders`."""
    from toolkit.ds_config.render import render
    from toolkit.engine import device, process
    from toolkit.engine.base import Training
    from toolkit.engine.grid import Grid
    from toolkit.engine.tensor import apply_tensor_parallel
    from toolkit.engine.zero import ZeroEngine
    from toolkit.models.tensor_plan import tensor_plan
    from toolkit.recipe.mesh import model_ranks

    me = process.from_environment(run.parallel)
    process.start(me)
    config = render(run, device.target(world_size, wanted="cpu", model_ranks=model_ranks(run.parallel)))

    def unused(*_: Any) -> Any:
        raise AssertionError("nothing is trained here")

    found = []
    for model in encoder_decoders().values():
        if me.mesh.tensor > 1:
            apply_tensor_parallel(model, tensor_plan(model, me.mesh.tensor), Grid(me.mesh, me.rank).tensor)
        training = Training(run.optimizer, run.schedule, 2, unused, unused, unused)
        engine = ZeroEngine(model, config, me, training, split=unused)
        found.append((me.data_rank, answers_of(engine, me, decoder=False)))
        engine.close()
    return found


@pytest.mark.parametrize("topology", ["one rank", "zero3", "tp2"])
def test_encoder_decoders_say_what_transformers_says(topology: str, llama_dir: Path, chat_file: Path) -> None:
    strategy = TOPOLOGIES[topology]
    run = recipe("causal_lm", llama_dir, chat_file, parallel=strategy.parallel)
    of_ranks = run_distributed(generate_texts, strategy.world_size, run)
    for index, model in enumerate(encoder_decoders().values()):
        wanted = reference(model, decoder=False)
        assert len({len(answer) for answer in wanted["greedy"]}) > 2
        for name, rows in wanted.items():
            assert in_order([rank[index] for rank in of_ranks], 0, name) == rows, (index, name)


BOTH = (GenerationSettings(14, pad_id=0), GenerationSettings(5, num_beams=2, pad_id=0))
"""Greedy past the window of those that have one, and beams."""


def generate_in_stages(rank: int, world_size: int, kinds: tuple[str, ...]) -> dict[str, tuple[bool, Any, Any]]:
    """Kind -> (whether a cache is used, the answers of stages, those of the whole model with transformers' own call)."""
    import torch.distributed as dist

    from tests.parity.test_stages import stages_of, whole_model
    from toolkit.engine.relay import SameTokens, relayed
    from toolkit.models.decoding import generate

    group = dist.new_group(list(range(world_size)))
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(3, 96, (length,), generator=generator).tolist() for length in (5, 12, 9)]
    batch = left_padded(rows, 0)
    found: dict[str, tuple[bool, Any, Any]] = {}
    for kind in kinds:
        whole = whole_model(kind).eval()
        stage: Any = stages_of(whole, world_size)[rank].eval()
        with torch.no_grad(), relayed(stage, group) as use_cache:
            agree = SameTokens(group, 1)
            answers = [generate(stage, batch, settings, agree=agree, use_cache=use_cache) for settings in BOTH]
            # Some architectures (DeepSeek V4) say other things with a cache than without: each is compared with its like.
            wanted = [generate(whole, batch, settings, use_cache=use_cache) for settings in BOTH]
        found[kind] = (use_cache, answers, wanted)
    return found


WITHOUT_CACHE = {"deepseek_v4", "qwen3_next"}
"""Architectures whose layers keep more than keys and values: their stages compute the whole text for each token."""


def test_stages_of_many_architectures_keep_caches_of_their_own() -> None:
    from tests.parity.test_stages import THREE_STAGES

    kinds = (*THREE_STAGES, "longcat_flash")  # two attentions in each layer
    of_ranks = run_distributed(generate_in_stages, 3, kinds)
    for found in of_ranks:
        assert found.keys() == set(kinds)
        assert {kind for kind, (use_cache, _, _) in found.items() if not use_cache} == WITHOUT_CACHE
        assert {kind: answers for kind, (_, answers, _) in found.items()} == {
            kind: wanted for kind, (_, _, wanted) in found.items()
        }
