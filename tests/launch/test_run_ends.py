"""However a run ends, what it leaves is true: the export is that of the step it names, and nothing dead is kept."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed
from tests.launch.runs import tiny_recipe, train
from tests.unit.test_run_lock import another_run
from toolkit.checkpoint.manifest import complete_steps
from toolkit.errors import LaunchError
from toolkit.recipe import Checkpoint, Evaluation, Optimizer, Parallel, Recipe, Schedule, Tracking
from toolkit.train import run_folder


def starts(
    rank: int, world_size: int, cache: str, runs: list[tuple[Recipe, str, str | None]]
) -> list[tuple[int, str, dict[str, Any]]]:
    """Train each (recipe, output_dir, resume) in turn: (exit code, what was said, what export/ then is)."""
    import contextlib
    import io

    from toolkit.errors import ToolkitError

    found = []
    for recipe, output_dir, resume in runs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                code = train(recipe, output_dir, cache, resume)
            except ToolkitError as error:
                code = error.exit_code
                print(error)
        found.append((code, printed.getvalue(), describe(Path(output_dir) / "export") if rank == 0 else {}))
    return found


def describe(export: Path) -> dict[str, Any]:
    """The step that stamp and card claim, the weights' format, and one weight as it is."""
    from safetensors.torch import load_file

    if not export.is_dir():
        return {}
    weights = load_file(export / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    stamp = json.loads((export / "export.json").read_text())
    card = (export / "README.md").read_text()
    return {
        "step": stamp["step"],
        "card": f"Weights in {stamp['dtype']} after {stamp['step']} optimizer steps" in card,
        "dtype": str(weights[name].dtype).removeprefix("torch."),
        "weight": weights[name].float().tolist(),
        "files": sorted(path.name for path in export.iterdir()),
    }


def weight_of(run: Path, step: int, dtype: str) -> list[list[float]]:
    """The same weight from checkpoint `step`, rounded to `dtype`."""
    import torch

    from toolkit.checkpoint.reader import CheckpointReader

    reader = CheckpointReader(run / "checkpoints" / f"step-{step:08d}")
    values = reader.weight("model.layers.0.mlp.up_proj.weight").to(getattr(torch, dtype))
    return list(values.float().tolist())


def with_fields(recipe: Recipe, section: str, **fields: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=fields)})


@pytest.fixture(scope="module")
def short(tiny_llama_dir: Path, chat_file: Path) -> Recipe:
    recipe = tiny_recipe(tiny_llama_dir, chat_file, steps=4, checkpoint=Checkpoint(keep=9))
    return recipe.model_copy(update={"schedule": Schedule(type="constant")})


def test_an_export_is_renewed_when_its_step_its_format_or_its_choice_differs(short: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    watched = with_fields(short, "data", evaluation_examples=8).model_copy(
        # Every step is worse than the one before: the best is the first evaluated, step 2.
        update={"optimizer": Optimizer(learning_rate=0.5, max_grad_norm=0.0)}
    )
    watched = watched.model_copy(update={"evaluation": Evaluation(every_steps=2)})
    longer = with_fields(watched.model_copy(update={"steps": 8}), "checkpoint", every_steps=2)
    fp32 = with_fields(longer, "checkpoint", export_dtype="fp32")
    recipes = [watched, longer, longer, fp32, with_fields(fp32, "checkpoint", export=False)]
    code_said_is = run_distributed(starts, 1, str(tmp_path / "cache"), [(r, str(run), "auto") for r in recipes])[0]
    assert [code for code, *_ in code_said_is] == [0] * 5
    assert [found["step"] for *_, found in code_said_is] == [4, 8, 8, 8, 8]
    assert [found["dtype"] for *_, found in code_said_is] == ["bfloat16"] * 3 + ["float32"] * 2
    assert all(found["card"] for *_, found in code_said_is)
    for (_, said, found), recipe in zip(code_said_is[:4], recipes, strict=False):
        short_name = recipe.checkpoint.export_dtype
        assert f"model in {run}/export (step {found['step']}, {short_name})" in said
        assert found["weight"] == weight_of(run, found["step"], found["dtype"])
    assert f"{run}/export stays the model of step 8: checkpoint.export=False" in code_said_is[4][1]
    assert "model in" not in code_said_is[4][1]
    assert sorted(path.name for path in run.iterdir() if "export" in path.name or path.name.startswith(".")) == [
        "export"
    ]


def test_an_early_stop_with_more_patience_and_the_choice_of_the_best(short: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    worse = with_fields(short, "data", evaluation_examples=8).model_copy(
        update={"optimizer": Optimizer(learning_rate=0.5, max_grad_norm=0.0), "steps": 12}
    )
    patient = [
        worse.model_copy(update={"evaluation": Evaluation(every_steps=1, early_stopping_patience=patience)})
        for patience in (1, 3)
    ]
    patient = [with_fields(recipe, "checkpoint", keep_best=True) for recipe in patient]
    newest = with_fields(patient[1], "checkpoint", keep_best=False)
    own = run / "export" / "notes.txt"
    first, second = (run_distributed(starts, 1, str(tmp_path / "cache"), [(r, str(run), "auto")])[0] for r in patient)
    own.write_text("mine")
    third = run_distributed(starts, 1, str(tmp_path / "cache"), [(newest, str(run), "auto")])[0]
    steps = complete_steps(run / "checkpoints")
    for [(code, said, found)], is_best in ((first, True), (second, True), (third, False)):
        assert code == 0 and found["card"]
        lines = strict_lines(run / "metrics.jsonl")
        best = next(line["eval"]["loss"] for line in lines if line["step"] == found["step"] and "eval" in line)
        which = f"step {found['step']}, the best: loss {best:.4f}, bf16" if is_best else f"step {found['step']}, bf16"
        assert f"model in {run}/export ({which})" in said
        assert found["weight"] == weight_of(run, found["step"], "bfloat16")
    assert third[0][2]["step"] == steps[-1] > first[0][2]["step"]
    assert (
        f"{run}/export held files that this run had not written: all of it is now {run}/export-before-1" in third[0][1]
    )
    assert (run / "export-before-1" / "notes.txt").read_text() == "mine"
    assert "notes.txt" not in third[0][2]["files"]


STRATEGIES = [*({"zero_stage": stage} for stage in range(4)), {"zero_stage": 1, "pipeline": 2}]


def strict_lines(path: Path) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_an_update_that_kills_the_model_is_kept_by_no_strategy(short: Recipe, tmp_path: Path) -> None:
    """The last update, or one before an evaluation or a checkpoint; the loss of its own step was finite."""
    runs = []
    for index, strategy in enumerate(STRATEGIES):
        # The one leaves weights of 1e12, which compute NaN; the other infinite ones.
        rate = 1e12 if index in (0, 4) else 1e38
        fatal = short.model_copy(update={"steps": 1, "optimizer": Optimizer(learning_rate=rate, max_grad_norm=0.0)})
        recipe = fatal.model_copy(update={"parallel": Parallel(**strategy)})
        if index % 2:
            recipe = with_fields(recipe, "data", evaluation_examples=8)
            recipe = with_fields(recipe, "checkpoint", keep_best=True)
        runs.append((recipe, str(tmp_path / str(index)), None))
    both = run_distributed(starts, 2, str(tmp_path / "cache"), runs)
    for index, found in enumerate(zip(*both, strict=True)):
        run = tmp_path / str(index)
        for code, said, _ in found:
            assert code == 3, (STRATEGIES[index], said)
            assert "after step 1" in said and "lower optimizer.learning_rate" in said
            assert f"{run} has no checkpoint before it: start again in another --output_dir" in said
        assert complete_steps(run / "checkpoints") == [] and not (run / "export").exists()
        lines = strict_lines(run / "metrics.jsonl")
        assert lines[-1]["step"] == 1 and "after step 1" in lines[-1]["failed"]
        assert not [line for line in lines if "eval" in line and line["step"]]
        assert not list((run / "checkpoints").glob("*"))


def test_one_infinite_number_that_no_loss_sees(short: Recipe, tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    """An embedding that no text uses is infinite: every loss is finite, and nothing may be kept."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    from tests import tiny

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    config = tiny.llama(tokenizer).config
    config.tie_word_embeddings = False
    model = LlamaForCausalLM(config)
    model.model.embed_tokens.weight.data[tokenizer.pad_token_id + 0, 5] = 1.0
    unused = tokenizer.convert_tokens_to_ids("\u0100")  # the byte 0
    model.model.embed_tokens.weight.data[unused, 5] = math.inf
    source = tiny.save(model, tokenizer, tmp_path / "model")
    recipe = with_fields(short, "model", path=str(source)).model_copy(update={"steps": 1})
    evaluated = with_fields(recipe, "data", evaluation_examples=8)
    runs = [
        (chosen.model_copy(update={"parallel": Parallel(**strategy)}), str(tmp_path / str(index)), None)
        for index, (chosen, strategy) in enumerate([(recipe, STRATEGIES[3]), (evaluated, STRATEGIES[4])])
    ]
    for found in run_distributed(starts, 2, str(tmp_path / "cache"), runs):
        for code, said, _ in found:
            assert code == 3 and "model.embed_tokens.weight is not finite after step 1" in said
    assert complete_steps(tmp_path / "0" / "checkpoints") == complete_steps(tmp_path / "1" / "checkpoints") == []


def test_the_last_good_checkpoint_is_named_and_its_export_stays(short: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    good = short.model_copy(update={"tracking": Tracking(tensorboard=True)})
    fatal = good.model_copy(
        update={"steps": 9, "optimizer": Optimizer(learning_rate=1e38, max_grad_norm=0.0, weight_decay=0.01)}
    )
    runs = [(good, str(run), None), (fatal, str(run), "auto"), (good, str(run), "auto")]
    first, second, third = run_distributed(starts, 1, str(tmp_path / "cache"), runs)[0]
    assert [first[0], second[0], third[0]] == [0, 3, 0], second[1]
    last_good = f"{run}/checkpoints/step-00000004"
    assert (
        f"the last good checkpoint is step 4, {last_good}: continue from it with --resume auto --output_dir {run}"
    ) in second[1]
    # The first of these updates leaves weights of 1e38, a finite loss, and no gradient for the others.
    assert "too large for fp32 to compute with" in second[1] and "after step 9" in second[1]
    assert complete_steps(run / "checkpoints") == [4]
    assert first[2] == second[2] == third[2] and first[2]["step"] == 4
    assert [line["step"] for line in strict_lines(run / "metrics.jsonl")][:4] == [1, 2, 3, 4]


def test_an_old_checkpoint_with_numbers_that_cannot_be_exported(short: Recipe, tmp_path: Path) -> None:
    """As an older version would have saved it: `toolkit export` refuses, and names a good one."""
    import numpy as np

    from toolkit.checkpoint.export import export
    from toolkit.errors import RunFailed

    run = tmp_path / "run"
    recipe = with_fields(short.model_copy(update={"steps": 2}), "checkpoint", every_steps=1, export=False)
    assert run_distributed(starts, 1, str(tmp_path / "cache"), [(recipe, str(run), None)])[0][0][0] == 0
    folder = run / "checkpoints" / "step-00000002"
    pieces = json.loads((folder / "manifest.json").read_text())["files"][0]["pieces"]
    piece = next(piece for piece in pieces if piece["name"] == "model.norm.weight" and piece["state"] == "fp32")
    for number, dtype, what, do in (
        (70000.0, "fp16", "does not fit into fp16: its largest number is 7e+04", "export it in bf16 or fp32"),
        (math.nan, "fp32", "is not finite: the run had diverged", f"take the last good one, step 1: {run}/checkpoints"),
    ):
        numbers = np.memmap(folder / "rank-00000.bin", dtype="<f4", mode="r+")
        numbers[piece["offset"] // 4 + 3] = number
        numbers.flush()
        with pytest.raises(RunFailed) as refused:
            export(run, tmp_path / "out", dtype)
        assert what in refused.value.what and "model.norm.weight" in refused.value.what and do in refused.value.do
        assert not (tmp_path / "out").exists() and not (tmp_path / ".out.writing").exists()
    export(run / "checkpoints" / "step-00000001", tmp_path / "out", "bf16")


def test_a_folder_in_use_a_folder_in_the_way(short: Recipe, tmp_path: Path) -> None:
    run, blocked = tmp_path / "run", tmp_path / "blocked"
    obstacle = blocked / "checkpoints" / "step-00000004"
    obstacle.mkdir(parents=True)
    (obstacle / "notes.txt").write_text("mine")
    with another_run(run) as other:
        before = sorted(run.rglob("*"))
        with pytest.raises(LaunchError, match="is in use"):  # before torch is imported, too
            run_folder.check(run, None, short)
        runs = [(short, str(run), None), (short, str(run), "auto"), (short, str(blocked), None)]
        for found in run_distributed(starts, 2, str(tmp_path / "cache"), runs):
            for code, said, _ in found[:2]:
                assert code == 2 and f"--output_dir {run} is in use: process {other.pid} on " in said
            code, said, _ = found[2]
            assert code == 2 and f"{obstacle} is there already, without a manifest.json" in said
        assert sorted(run.rglob("*")) == before
    assert [path.name for path in (blocked / "checkpoints").iterdir()] == [obstacle.name]
    assert (obstacle / "notes.txt").read_text() == "mine"


def look(rank: int, world_size: int, shared: str, own: str) -> list[str]:
    """What each rank is told of a folder that all see, and of one that each has for itself."""
    from toolkit.engine import process
    from toolkit.errors import LaunchError
    from toolkit.train.claim import check_shared

    said = []
    for folder in (shared, f"{own}-{rank}"):
        if rank == 0:  # which holds it by then
            Path(folder).mkdir(exist_ok=True)
        try:
            check_shared(Path(folder), process.from_environment(), wait_s=0.3)
            said.append("")
        except LaunchError as error:
            said.append(str(error))
    return said


def test_hosts_without_a_shared_folder_are_refused_at_the_start(tmp_path: Path) -> None:
    for shared, own in run_distributed(look, 2, str(tmp_path / "shared"), str(tmp_path / "own")):
        assert shared == ""
        assert "is not one folder: rank 1 on " in own and "pass an --output_dir on a file system that all hosts" in own
    # Each rank has made it, so that a host that remembers its absence looks again.
    assert [list((tmp_path / name).iterdir()) for name in ("shared", "own-0", "own-1")] == [[], [], []]


def wait_at_length(rank: int, world_size: int) -> list[object]:
    """What each rank gets of work that takes longer than a collective waits, and of work that fails."""
    import time
    from datetime import timedelta

    from torch.distributed import distributed_c10d

    from toolkit.engine import process

    def work() -> int:
        time.sleep(2.0)
        return rank

    def fail() -> int:
        raise LaunchError(f"rank {rank} failed", expected="x", do="y")

    process.PATIENCE_S = 0.2
    distributed_c10d._set_pg_timeout(timedelta(seconds=1.5))
    found: list[object] = [process.from_main_at_length(work)]
    try:
        process.from_main_at_length(fail)
    except LaunchError as error:
        found.append(error.what)
    return found


def test_ranks_wait_for_long_work_of_rank_0() -> None:
    assert run_distributed(wait_at_length, 2) == [[0, "rank 0 failed"]] * 2
