"""Every command of README.md, docs/ and the quick start is run, each in the way that WAYS says. One that has no way fails.

Starts of recipes go through the launcher's own parser, then train a tiny stand-in of the recipe with the flags as they
stand; that the launchers themselves bring a recipe to run is seen by test_launchers.py.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from pyarrow import parquet

from tests.distributed import run_distributed
from tests.launch.media import write_media
from tests.launch.shrink import Inputs, shrink
from tests.pages import DOCS, PAGES, ROOT, blocks, commands
from toolkit.cache import cache_dir
from toolkit.cli import verbs
from toolkit.errors import ToolkitError, show
from toolkit.recipe.load import load_recipe

TEXTS = list(dict.fromkeys(command.text for command in commands()))
RUN = "runs/sft_smollm2_zero2"
STANDS_FOR = {
    # Also on two hosts, which the batch of the quick start is too small for.
    "toolkit config recipes/NAME.py": "toolkit config recipes/sft_llama8b_zero3.py",
    "recipes/NAME.py": "recipes/sft_smollm2_zero2.py",
    "runs/NAME": RUN,
    " PATH": " model",
    "step-00000010": "step-00000004",
}
"""Placeholder of a page -> what is there where the tests run it."""
REHEARSAL = r"(deepspeed .*|python) recipes/\w+\.py --rehearse"
START = r"(deepspeed|accelerate launch|torchrun|python) .*recipes/\w+\.py.*"
HOSTS = r"deepspeed --hostfile .*|sbatch .*"

Start = tuple[int, str, list[str]]
"""Processes, script, its flags."""


@dataclass(frozen=True)
class Home:
    """A folder as a user has it, with the run of the quick start in it."""

    folder: Path
    ended: dict[str, tuple[int, str]]
    """Start of a recipe -> exit code, and what all its ranks printed."""


# ------------------------------------------------------------------------------------------------- starts of recipes


def parse_starts(rank: int, world_size: int, texts: Sequence[str]) -> dict[str, Start]:
    """What each launcher makes of its command line."""
    from accelerate.commands.launch import launch_command_parser
    from deepspeed.launcher.runner import parse_args
    from torch.distributed.run import get_args_parser

    found = {}
    for text in texts:
        launcher, *words = shlex.split(text)
        if launcher == "python":
            found[text] = (1, words[0], words[1:])
        elif launcher == "deepspeed":
            ours = parse_args(words)
            found[text] = (ours.num_gpus, ours.user_script, ours.user_args)
        elif launcher == "torchrun":
            ours = get_args_parser().parse_args(words)
            found[text] = (int(ours.nproc_per_node), ours.training_script, ours.training_script_args)
        else:
            ours = launch_command_parser().parse_args(words[1:])
            processes = yaml.safe_load((ROOT / ours.config_file).read_text())["num_processes"]
            found[text] = (processes, ours.training_script, ours.training_script_args)
    return found


def run_starts(
    rank: int, world_size: int, folder: str, starts: list[list[str]], inputs: Inputs, cache: str
) -> list[tuple[int, str]]:
    """Exit code and printed text of each of `starts`, one after the other in `folder`."""
    import torch.distributed

    from toolkit.train import run

    os.chdir(folder)
    os.environ["TOOLKIT_CACHE"] = cache
    train = run.train

    def train_together(*arguments: Any) -> int:
        # The ranks' process group serves all starts. Without it, making it is where they wait for each other.
        torch.distributed.barrier()
        return train(*arguments, keep_group=True)

    run.train = train_together
    ended = []
    for script, *flags in starts:
        if rank == 0 and "--resume" not in flags:
            shutil.rmtree("runs", ignore_errors=True)
        torch.distributed.barrier()
        ended.append(_run_start(script, flags, inputs))
    return ended


def _run_start(script: str, flags: list[str], inputs: Inputs) -> tuple[int, str]:
    from toolkit.cli.run import main

    printed = io.StringIO()
    sys.argv = [script, *flags]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = main(shrink(Path(script), inputs, Path("scratch")), flags)
        except SystemExit as end:
            code = int(end.code or 0)
        except ToolkitError as error:  # the recipe is not there, for instance
            code = show(error)
    return code, printed.getvalue()


@pytest.fixture(scope="module")
def home(
    tiny_llama_dir: Path,
    tiny_bert_dir: Path,
    chat_file: Path,
    classification_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Home:
    folder = tmp_path_factory.mktemp("home")
    for name in ("recipes", "ds_configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_data_files(folder, chat_file, classification_file)
    write_example_files(folder)
    rows = tmp_path_factory.mktemp("rows")
    heard = write_media(rows)
    inputs = Inputs(
        tiny_llama_dir, tiny_bert_dir, tiny_bert_dir, chat_file, classification_file, chat_file, rows, heard
    )
    shutil.copytree(tiny_llama_dir, folder / "model")
    (folder / "cache").mkdir()
    for fetched in ("models", "data"):
        (folder / "cache" / fetched).symlink_to(cache_dir() / fetched)
    new = [text for text in TEXTS if text.startswith("toolkit new ")]
    (written,) = run_distributed(make_recipes, 1, str(folder), new, str(folder / "cache"))
    others = rf"{HOSTS}|{REHEARSAL}"
    texts = [text for text in [*TEXTS, *ROW_PREVIEWS] if re.fullmatch(START, text) and not re.fullmatch(others, text)]
    (starts,) = run_distributed(parse_starts, 1, texts)
    ended: dict[str, tuple[int, str]] = dict(zip(new, written, strict=True))
    # On two ranks what is new goes first, the quick start last of it, so that the others have something to continue.
    for processes in sorted({found[0] for found in starts.values()}, reverse=True):
        group = [
            list(start)
            for start in dict.fromkeys((script, *flags) for n, script, flags in starts.values() if n == processes)
        ]
        group.sort(key=lambda words: (("--resume" in words) == (processes > 1), -len(words)))
        results = run_distributed(run_starts, processes, str(folder), group, inputs, str(folder / "cache"))
        by_words = {tuple(words): by_rank for words, by_rank in zip(group, zip(*results, strict=True), strict=True)}
        for text, (n, script, flags) in starts.items():
            if n == processes:
                by_rank = by_words[script, *flags]
                ended[text] = (max(code for code, _ in by_rank), "".join(printed for _, printed in by_rank))
    return Home(folder, ended)


def write_data_files(folder: Path, chats: Path, classes: Path) -> None:
    """The same rows in the kinds of file that the pages name."""
    shutil.copy(chats, folder / "my.jsonl")
    rows = [json.loads(line)["messages"] for line in chats.read_text(encoding="utf-8").splitlines()]
    pairs = [{"prompt": asked["content"], "completion": said["content"]} for *_, asked, said in rows]
    datasets = {"my": pairs, "tickets": [json.loads(line) for line in classes.read_text(encoding="utf-8").splitlines()]}
    for name, found in datasets.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]))
            writer.writeheader()
            writer.writerows(found)
    for name, part in (("train", rows[:150]), ("held_out", rows[150:])):
        parquet.write_table(pyarrow.table({"messages": part}), folder / f"{name}.parquet")


def write_example_files(folder: Path) -> None:
    """Those that the pages speak of, as a reader might have them."""
    config = json.loads((ROOT / "ds_configs" / "sft_smollm2_zero2.json").read_text())
    del config["train_batch_size"], config["scheduler"]
    arguments = {
        "per_device_train_batch_size": config["train_micro_batch_size_per_gpu"],
        "learning_rate": config["optimizer"]["params"]["lr"],
        "weight_decay": config["optimizer"]["params"]["weight_decay"],
        "bf16": True,
    }
    written = json.dumps(config, indent=2)
    files = {
        "my_ds.json": written,
        "ds_config.json": written,
        "args.json": json.dumps(arguments),
        "accelerate.yaml": "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {zero3_init_flag: false}\n",
        "hostfile": "a slots=2\n",
    }
    files |= {f"row{number}.jsonl": block for number, block in enumerate(ROW_BLOCKS)}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- ways of running


def start(text: str, home: Home) -> None:
    code, printed = home.ended[text]
    assert code == 0, printed
    assert printed


def run_verb(text: str, home: Home) -> None:
    """The verb itself, where the files it names are."""
    code, printed = _call(text)
    assert code == 0, printed
    assert printed or " > " in text


def rehearsal(text: str, home: Home) -> None:
    """With the flag as it stands; the data of the recipe need not be here."""
    from toolkit.cli.run import main

    script = Path(re.findall(r"recipes/\w+\.py", text)[0])
    assert script.is_file() and parse_starts(0, 1, [text])[text][1:] == (str(script), ["--rehearse"])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(load_recipe(script), ["--rehearse"])
    assert code == 0 and "nothing is left behind" in printed.getvalue()


def make_recipes(rank: int, world_size: int, folder: str, texts: Sequence[str], cache: str) -> list[tuple[int, str]]:
    """Exit code and printed text of each `toolkit new`, where torch is loaded already."""
    os.chdir(folder)
    os.environ["TOOLKIT_CACHE"] = cache
    shipped = {path.name for path in Path("recipes").iterdir()}
    ended = []
    for text in texts:
        name = f"{text.split()[2]}.py"
        if name not in shipped:  # of an earlier text, for a reader who has chosen the same name
            (Path("recipes") / name).unlink(missing_ok=True)
        ended.append(_call(text))
    return ended


def _call(text: str) -> tuple[int, str]:
    """Run a command of ours in this process; exit code and what was printed."""
    for placeholder, value in STANDS_FOR.items():
        text = text.replace(placeholder, value)
    words, _, file = text.partition(" > ")
    printed, complaint = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaint), _standard_input(words):
        code = verbs.main(shlex.split(words)[1:])
    if file:
        Path(file).write_text(printed.getvalue(), encoding="utf-8")
        assert printed.getvalue()
    return code, printed.getvalue() + complaint.getvalue()


@contextlib.contextmanager
def _standard_input(words: str) -> Iterator[None]:
    """What a command that ends in "-" reads."""
    if not words.endswith(" -"):
        yield
        return
    before = sys.stdin
    with Path("my_ds.json").open(encoding="utf-8") as sys.stdin:
        yield
    sys.stdin = before


def make_target(text: str, home: Home) -> None:
    """The Makefile has it; the commands of the quick start are among those that are run here."""
    assert f"\n{text.split()[1]}: " in (ROOT / "Makefile").read_text(encoding="utf-8")


def installed_program(text: str, home: Home) -> None:
    """The program comes with our dependencies, and its input is there."""
    assert entry_points(group="console_scripts", name=text.split()[0])
    assert list((home.folder / "runs").rglob("events.out.tfevents.*"))


def environment(text: str, home: Home) -> None:
    """`make install` makes that folder; venv puts the script there."""
    assert text.split()[1].startswith(".venv/") and "\nVENV := .venv\n" in (ROOT / "Makefile").read_text(
        encoding="utf-8"
    )


def for_several_hosts(text: str, home: Home) -> None:
    """It names files that exist; the recipe renders for its hosts. Two hosts are run by test_hosts.py, SLURM by test_cluster_files.py."""
    named = re.findall(r"\S+\.(?:py|slurm)", text)
    assert named and all((ROOT / name).is_file() for name in named)
    recipe = load_recipe(ROOT / "recipes" / f"{Path(named[0]).stem}.py")
    assert recipe.launch.hosts > 1
    if text.startswith("deepspeed"):
        assert f"--num_nodes {recipe.launch.hosts} " in text
        _holds("tests/launch/test_hosts.py", "launch", "--hostfile")
    else:
        _holds("tests/launch/test_cluster_files.py", "test_slurm_script", '"--slurm"')


def covered(file: str, function: str, words: str) -> Callable[[str, Home], None]:
    """Too long or too costly here: `function` in `file` runs it, with `words` in it."""

    def look(text: str, home: Home) -> None:
        _holds(file, function, words)
        if text.startswith("toolkit "):
            assert verbs.parser().parse_args(shlex.split(text.partition(" > ")[0])[1:]).run is not None

    return look


def _holds(file: str, function: str, words: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    body = re.search(rf"^def {function}\b.*?(?=^(?:def|@|\S+ = )|\Z)", source, re.MULTILINE | re.DOTALL)
    assert body is not None and words in body[0], f"{file}::{function} does not run it"


def benchmark(text: str, home: Home) -> None:
    """Its test runs it with --tiny."""
    name = re.findall(r"benchmarks/(\w+)\.py", text)[0]
    assert f'run_tiny("{name}"' in (ROOT / "tests/unit/test_benchmarks.py").read_text(encoding="utf-8")


PARITY = "tests/parity/test_verb.py"
WAYS: dict[str, Callable[[str, Home], None]] = {
    r"make \w+": make_target,
    r"source \S+": environment,
    HOSTS: for_several_hosts,
    REHEARSAL: rehearsal,
    START: start,
    r"toolkit new .*": start,
    r"PYTHONPATH=\. deepspeed .* forecast\.py .*": covered(
        "tests/parity/test_custom.py", "test_the_page_has_a_whole_one", "forecast.py"
    ),
    r"python benchmarks/gpu\.py --.*": covered("tests/unit/test_benchmarks.py", "test_gpu", "--budget_s"),
    r"python benchmarks/\w+\.py --tiny": benchmark,
    r"tensorboard .*": installed_program,
    r"toolkit (check|config|export|fetch|plan|rules)\b.*": run_verb,
    # Half a minute and more each.
    r"toolkit parity .* --architecture olmoe": covered(PARITY, "test_experts_under_zero3", "--architecture"),
    r"toolkit parity .* --dtype \w+": covered(PARITY, "test_16_bits_are_compared_with_16_bits", "--dtype"),
    r"toolkit parity .*": covered(PARITY, "test_strategies_of_a_recipe_agree", "zero1,zero3"),
    r"toolkit doctor --build": covered(
        "tests/unit/test_docs.py", "test_make_test_builds_the_kernels", "doctor --build"
    ),
    r"toolkit doctor --gpu": covered(
        "tests/unit/test_check_gpu.py", "test_without_a_gpu_there_is_one_message", "--gpu"
    ),
    r"toolkit doctor --nvme /mnt/nvme --parameters 7b": covered(
        "tests/unit/test_check_nvme.py", "test_the_verb_measures_and_leaves_nothing", "--parameters"
    ),
    r"toolkit doctor --json": covered("tests/unit/test_doctor.py", "test_json_is_all_that_the_verb_prints", "--json"),
    r"toolkit doctor --hostfile hostfile": covered("tests/launch/test_hosts.py", "doctors_words", "DOCTOR"),
    r"toolkit doctor": covered("tests/unit/test_doctor.py", "test_report_and_exit_code", "doctor("),
}
"""Pattern -> how a command that matches it is run; the first that matches counts."""


@pytest.fixture(autouse=True)
def _at_home(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one command wrote is not in the way of the next."""
    monkeypatch.chdir(home.folder)
    shutil.rmtree("out", ignore_errors=True)
    write_example_files(home.folder)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("text", TEXTS)
def test_command(text: str, home: Home) -> None:
    way = next((way for pattern, way in WAYS.items() if re.fullmatch(pattern, text)), None)
    assert way is not None, "no way to run this command: add one to WAYS"
    way(text, home)


def test_every_way_is_used() -> None:
    firsts = {next((pattern for pattern in WAYS if re.fullmatch(pattern, text)), None) for text in TEXTS}
    assert firsts == set(WAYS)


# ------------------------------------------------------------------------------------------------------- other blocks

ROW_BLOCKS = blocks(DOCS / "data.md", "json")
ROW_PREVIEWS = [
    f"python recipes/{'classify_minilm_zero1' if 'label' in block else 'sft_smollm2_zero2'}.py --data.train row{number}.jsonl --preview 1"
    for number, block in enumerate(ROW_BLOCKS)
]


@pytest.mark.parametrize("text", ROW_PREVIEWS)
def test_rows_of_the_page_about_data_are_read(text: str, home: Home) -> None:
    start(text, home)


PYTHON_BLOCKS = [(str(page.relative_to(ROOT)), block) for page in PAGES for block in blocks(page, "python")]


def run_blocks(rank: int, world_size: int, folder: str, texts: Sequence[str]) -> list[list[str]]:
    """The names that each block defines."""
    os.chdir(folder)
    found = []
    for text in texts:
        names: dict[str, Any] = {}
        exec(text, names)
        found.append(sorted(names))
    return found


def test_python_blocks_run(home: Home) -> None:
    (names,) = run_distributed(run_blocks, 1, str(home.folder), [block for _, block in PYTHON_BLOCKS])
    assert len(names) == len(PYTHON_BLOCKS) >= 2
    assert [("model" in found, "recipe" in found) for found in names] == [
        (True, False), (False, False), (False, True), (False, True),
    ]  # fmt: skip


def test_json_blocks_are_json() -> None:
    for page in PAGES:
        for block in blocks(page, "json"):
            assert all(json.loads(line) for line in block.splitlines()), page
