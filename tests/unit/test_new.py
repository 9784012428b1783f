"""`toolkit new`: what it writes and says, what it refuses before anything is written."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disks import read_only, small_disk
from tests.tiny import chats, write_lines
from toolkit.cli import new, verbs
from toolkit.cli.run import main as start
from toolkit.ds_config.golden import verify
from toolkit.recipe import Recipe
from toolkit.recipe.load import load_recipe
from toolkit.recipe.recipe_file import launch_commands


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with chats.jsonl in it and no recipes/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    write_lines(tmp_path / "chats.jsonl", chats())
    return tmp_path


@pytest.fixture
def make(here: Path, tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Recipe, str]]:
    """Runs the verb with the tiny Llama for chats.jsonl; the recipe and what was printed."""

    def run(*words: str, model: Path = tiny_llama_dir, data: str = "chats.jsonl") -> tuple[Recipe, str]:
        code = verbs.main(["new", "sft_tiny_zero2", "--model", str(model), "--data", data, "--force", *words])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return load_recipe("recipes/sft_tiny_zero2.py"), printed.out

    return run


def test_a_recipe_is_written_and_explained(
    make: Callable[..., tuple[Recipe, str]], here: Path, tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read from the written file: numbers of the data and the model, everything else of the source."""
    recipe, printed = make()
    source = load_recipe(new.SHIPPED / "sft_smollm2_zero2.py")
    assert (recipe.model.path, recipe.data.train) == (str(tiny_llama_dir), "chats.jsonl")
    assert recipe.data.evaluation_examples == 10  # a twentieth of 200
    assert recipe.batch.sequence_length == 512  # the longest has more, the model has no more
    assert (recipe.batch.global_size, recipe.epochs, recipe.steps) == (4, 4.0, None)
    assert recipe.schedule.warmup_steps == 1 and recipe.checkpoint.every_steps == recipe.evaluation.every_steps == 5
    assert recipe.task.sample_prompt == chats()[0]["messages"][1]["content"]
    assert (recipe.optimizer, recipe.precision, recipe.parallel) == (
        source.optimizer,
        source.precision,
        source.parallel,
    )
    assert "LlamaForCausalLM, 115.0 k parameters, 512 positions, tied embeddings, a chat template" in printed
    assert "chats.jsonl: 200 rows of conversations, in messages\n" in printed
    assert "holds 197 of 200 conversations whole, the longest has 908 tokens; 3 are cut off" in printed
    assert "packed sequences per step of about 37" in printed and "about 37 steps" in printed
    text = (here / "recipes/sft_tiny_zero2.py").read_text(encoding="utf-8")
    assert "# sequence_length: holds 197 of 200" in text
    command = launch_commands(recipe.launch, "sft_tiny_zero2")[0]
    assert f"\n{command}\n" in text
    assert [line.partition("  #")[0].rstrip() for line in printed.splitlines()[-4:]] == [
        "python recipes/sft_tiny_zero2.py --preview 2",
        "python recipes/sft_tiny_zero2.py --dry_run",
        "python recipes/sft_tiny_zero2.py --rehearse",
        command,
    ]
    assert verify(here / "recipes", here / "ds_configs") == 2
    assert start(recipe, ["--dry_run"]) == 0
    capsys.readouterr()
    assert start(recipe, ["--preview", "2"]) == 0
    assert "sequence 2:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "tuning", "rate"),
    [("sft_smollm2_zero2", "lora", 1e-3), ("lora_smollm2_zero2", "full", 2e-4), ("lora_smollm2_zero2", "lora", 2e-3)],
)
def test_another_tuning_has_its_own_steps(
    source: str, tuning: str, rate: float, here: Path, tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fields of the source's kind are gone, and the rate is that of the kind that is chosen, with the reason beside it."""
    words = ("--from", source, "--model", str(tiny_llama_dir), "--data", "chats.jsonl", "--tuning.name", tuning)
    assert verbs.main(["new", "mine", *words]) == 0
    recipe, printed = load_recipe("recipes/mine.py"), capsys.readouterr().out
    assert (recipe.tuning.name, recipe.optimizer.learning_rate) == (tuning, rate)
    assert ("take larger steps than all weights" in printed) == (source.startswith("sft"))
    assert ("take smaller steps than adapters" in printed) == (tuning == "full")


def test_what_is_given_stays(make: Callable[..., tuple[Recipe, str]], here: Path) -> None:
    """Flags of recipe fields, in either spelling; what depends on them follows."""
    recipe, _ = make(
        *("--optimizer.learning-rate", "3e-5", "--batch.global_size=6", "--data.packing", "False", "--steps", "7"),
        *("--seed", "3", "--note", "mine", "--checkpoint.every_steps", "3", "--evaluation.max_sequences", "4"),
    )
    assert recipe.optimizer.learning_rate == 3e-5 and recipe.seed == 3 and recipe.note == "mine"
    assert (recipe.batch.global_size, recipe.batch.micro_size, recipe.data.packing) == (6, 1, False)
    assert (recipe.steps, recipe.epochs, recipe.checkpoint.every_steps) == (7, None, 3)
    assert recipe.schedule.warmup_steps == 0 and recipe.evaluation.max_sequences == 4
    recipe, _ = make("--devices", "8", "--epochs", "2", "--evaluation", "chats.jsonl", "--task.train_on", "all")
    assert recipe.launch.devices == recipe.batch.global_size == 8
    assert (recipe.epochs, recipe.data.evaluation, recipe.data.evaluation_examples) == (2.0, "chats.jsonl", 0)
    assert recipe.task.train_on == "all"
    write_lines(
        here / "odd.jsonl", [{"a": f"Question {number}?", "b": "Answer.", "c": "Other."} for number in range(40)]
    )
    recipe, printed = make("--task.prompt_field", "a", "--task.completion_field", "c", data="odd.jsonl")
    assert (recipe.task.prompt_field, recipe.task.completion_field) == ("a", "c")
    assert recipe.task.sample_prompt == "Question 0?" and "in a and c; not read: b" in printed
    (here / "pairs.csv").write_text("prompt,completion\n" + "".join(f"q{n},a{n}\n" for n in range(40)))
    recipe, printed = make("--task.text_field", "completion", data="pairs.csv")
    assert recipe.task.text_field == "completion" and "of texts, in completion; not read: prompt" in printed
    assert start(recipe, ["--preview", "1"]) == 0
    recipe, printed = make("--batch.sequence_length", "128")
    assert recipe.batch.sequence_length == 128 and "as you said; holds 169 of 200" in printed


@pytest.mark.parametrize(
    ("source", "global_size", "stage"),
    [("pretrain_llama10m_zero1", 4, 1), ("sft_llama70b_pp4_tp8", 4, 1), ("sft_llama8b_zero3", 8, 3)],
)
def test_any_recipe_may_be_the_source(
    source: str, global_size: int, stage: int, make: Callable[..., tuple[Recipe, str]]
) -> None:
    """A model from scratch, several hosts, an attention that this machine lacks: the strategy stays, the numbers fit."""
    recipe, _ = make("--from", source)
    assert (recipe.batch.global_size, recipe.parallel.zero_stage) == (global_size, stage)
    assert recipe.model.architecture is None and recipe.model.weights == "pretrained" and not recipe.model.config
    assert recipe.launch == load_recipe(new.SHIPPED / f"{source}.py").launch
    assert recipe.epochs is not None and recipe.data.overlong == "truncate"


def test_the_source_is_bent_where_it_would_break(make: Callable[..., tuple[Recipe, str]]) -> None:
    """Another schedule, a stream, the source's own data on more devices."""
    recipe, _ = make("--schedule.type", "one_cycle")
    assert (recipe.schedule.type, recipe.schedule.warmup_steps) == ("one_cycle", 0)
    recipe, _ = make("--data.streaming", "True", "--devices", "6", "--steps", "40")
    assert (recipe.batch.global_size, recipe.batch.micro_size, recipe.data.evaluation_examples) == (6, 1, 0)
    assert (recipe.steps, recipe.checkpoint.every_steps, recipe.evaluation.every_steps) == (40, 5, 0)


def test_tiny_files(make: Callable[..., tuple[Recipe, str]], here: Path) -> None:
    """No batch larger than the data, no warm-up, nothing held out; one row is for one device."""
    write_lines(here / "five.jsonl", chats()[:5])
    recipe, _ = make(data="five.jsonl")
    assert (recipe.batch.global_size, recipe.schedule.warmup_steps, recipe.data.evaluation_examples) == (2, 0, 0)
    assert recipe.evaluation.every_steps == 0
    write_lines(here / "one.jsonl", chats()[:1])
    recipe, printed = make(data="one.jsonl")
    assert (recipe.launch.devices, recipe.batch.global_size, recipe.data.packing) == (1, 1, False)
    assert "1 sequence for all ranks is too little for more" in printed


def test_a_large_file_is_read_at_its_beginning(
    make: Callable[..., tuple[Recipe, str]], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of its rows follows from its size, and is said to."""
    monkeypatch.setattr("toolkit.draft.survey.STREAMED_BYTES", 1000)
    rows = [{"text": f"Row {number:06} of a file."} for number in range(3000)]
    write_lines(here / "rows.jsonl", rows)
    with (here / "rows.jsonl").open("a") as file:
        file.write("what is not read is not looked at\n")
    recipe, printed = make(data="rows.jsonl")
    assert "rows.jsonl: about 3,000 rows of texts" in printed and "of the first 1,000 rows" in printed
    assert (recipe.data.streaming, recipe.data.evaluation_examples) == (False, 150)


def test_a_folder_is_evaluated_on_its_own_split(make: Callable[..., tuple[Recipe, str]], here: Path) -> None:
    (here / "mine").mkdir()
    for split, found in (("train", chats()[:120]), ("validation", chats()[120:])):
        write_lines(here / f"mine/{split}.jsonl", found)
    recipe, printed = make(data="mine")
    assert (recipe.data.evaluation, recipe.data.evaluation_split) == ("mine", "validation")
    assert recipe.data.evaluation_examples == 0 and recipe.evaluation.every_steps == recipe.checkpoint.every_steps > 0
    assert "mine: 120 rows of conversations" in printed and "the folder has a split 'validation'" in printed
    recipe, _ = make("--data.evaluation_examples", "20", data="mine")
    assert (recipe.data.evaluation, recipe.data.evaluation_examples) == (None, 20)


def test_formats_of_the_field_need_no_columns(make: Callable[..., tuple[Recipe, str]], here: Path) -> None:
    """What the reader knows is left to it, Alpaca's second column and ShareGPT's roles with it."""
    alpaca = {"instruction": "Say it.", "input": "Now.", "output": "It."}
    write_lines(here / "alpaca.jsonl", [{**alpaca, "nr": number} for number in range(40)])
    recipe, printed = make(data="alpaca.jsonl")
    assert (
        "40 rows of prompts with completions as Alpaca has them, in instruction and input and output; not read: nr"
        in printed
    )
    assert (recipe.task.sample_prompt, recipe.task.prompt_field) == (None, "prompt")  # of two lines: not asked
    write_lines(here / "pairs.jsonl", [{"question": "Who?", "answer": "Me."}] * 40)
    assert "completions as questions with answers have them, in question and answer\n" in make(data="pairs.jsonl")[1]
    talk = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]
    write_lines(here / "share.jsonl", [{"conversations": talk, "id": str(number)} for number in range(40)])
    recipe, printed = make(data="share.jsonl")
    assert (recipe.task.messages_field, recipe.task.sample_prompt) == ("messages", "Who?")
    assert "conversations as ShareGPT has them, in conversations; not read: id" in printed


def test_what_is_read_is_told_from_what_is_not(make: Callable[..., tuple[Recipe, str]], here: Path) -> None:
    """Of the columns that hold something, whatever the first row holds; a column without a name, too."""
    rows = [{"instruction": f"Say {n}.", "input": "", "output": "Yes.", "text": f"Say {n}: Yes."} for n in range(40)]
    write_lines(here / "rows.jsonl", rows)
    assert ": 40 rows of texts, in text; not read: instruction, output\n" in make(data="rows.jsonl")[1]
    write_lines(
        here / "rows.jsonl", [{**row, "text": None, "input": "more" if n else ""} for n, row in enumerate(rows)]
    )
    assert "as Alpaca has them, in instruction and output and input\n" in make(data="rows.jsonl")[1]
    (here / "rows.csv").write_text(",prompt,completion,id\n" + "".join(f"{n},q{n},a{n},x{n}\n" for n in range(40)))
    _, printed = make(data="rows.csv")
    assert "completions, in prompt and completion; not read: id\n" in printed
    assert (
        "not read: the first column of rows.csv, which has no name (pandas writes the numbers of rows there)" in printed
    )


def test_the_model_alone_may_be_new(make: Callable[..., tuple[Recipe, str]], here: Path, tiny_llama_dir: Path) -> None:
    """Then the data, the batch and the length stay the source's."""
    first, _ = make("--steps", "9")
    shutil.copytree(tiny_llama_dir, here / "other")
    assert verbs.main(["new", "sft_other", "--from", "sft_tiny_zero2", "--model", "other"]) == 0
    recipe = load_recipe("recipes/sft_other.py")
    assert recipe.model_copy(update={"model": first.model, "note": first.note}) == first


@pytest.mark.parametrize(
    ("flags", "cure"),
    [
        ([], "a classifier takes names, or integers from 0 on, that come again"),
        (["--from", "sft_smollm2_zero2"], f"for a classifier: --from {new.CLASSES} --task.label_field label"),
    ],
)  # fmt: skip
def test_labels_that_a_language_model_leaves_out_are_said(
    make: Callable[..., tuple[Recipe, str]], here: Path, flags: list[str], cure: str
) -> None:
    lines = [{"text": f"This is line {n} of many.", "label": n / 7 if not flags else n % 2} for n in range(60)]
    write_lines(here / "scores.jsonl", lines)
    said = "note: column 'label' looks like classes or scores; this trains a language model on text; "
    recipe, printed = make(*flags, data="scores.jsonl")
    assert recipe.task.name == "causal_lm" and f"{said}{cure}\n" in printed
    assert said not in make(*flags, "--task.name", "causal_lm", data="scores.jsonl")[1]


def lines(**columns: str) -> list[dict[str, object]]:
    """60 rows; {n} is the row's number, {m} comes twice, {k} and {b} are one of two. Digits alone are an integer."""
    filled = [
        {name: text.format(n=n, m=n % 30, k=("one", "two")[n % 2], b=n % 2) for name, text in columns.items()}
        for n in range(60)
    ]
    return [{name: int(text) if text.isdigit() else text for name, text in row.items()} for row in filled]


OPEN: dict[str, list[dict[str, object]]] = {
    "two_texts.jsonl": lines(sentence1="Words {n}.", sentence2="More words {n}.", label="{b}"),
    "preferences.jsonl": lines(prompt="Who is {n}?", chosen="Me.", rejected="You, and {n} others."),
    "headless.csv": lines(q0="q{n}", a0="a{n}"),
    "spaces.jsonl": lines(**{"the words": "Words {n}.", "its kind": "{k}", "other words": "Words, {n}."}),
    "numbers.jsonl": lines(words="Words {n}.", others="Others {n}.", score="{n}", group="{b}"),
    "noted.jsonl": lines(text="Words {n}.", stars="{n}", language="{n}x{b}"),
    "noted_classes.jsonl": lines(text="Words {n}.", Category="c{m}"),
    "german.csv": lines(frage="Was ist {n}?", antwort="Das da.", sorte="{k}"),
}


@pytest.mark.parametrize("name", OPEN)
def test_every_suggestion_works_as_it_is_printed(
    name: str, here: Path, tiny_llama_dir: Path, tiny_bert_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Taken out of the message or the note, and given."""
    if name.endswith(".csv"):
        rows = [list(OPEN[name][0]), *(row.values() for row in OPEN[name])]
        (here / name).write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    else:
        write_lines(here / name, OPEN[name])
    start = ["new", "mine", "--force", "--data", name]
    code = verbs.main([*start, "--model", str(tiny_llama_dir)])
    printed = capsys.readouterr()
    said = printed.err.partition("do this:")[2] if code else "".join(re.findall("note: .*", printed.out))
    flag = r"--(?:task\.\w+_field|task\.name) (?:'[^']*'|[^\s,]+)"
    choices = re.findall(rf"{flag}(?: {flag})*", said)
    assert choices or name == "noted.jsonl", printed
    for choice in choices:
        model = tiny_bert_dir if "label_field" in choice else tiny_llama_dir
        assert verbs.main([*start, "--model", str(model), *shlex.split(choice)]) == 0, capsys.readouterr().err
        recipe = load_recipe("recipes/mine.py")
        assert (recipe.task.name == "sequence_classification") == ("label_field" in choice)
    if {"label", "group", "its kind", "sorte"} & OPEN[name][0].keys():
        assert any("--task.label_field" in choice for choice in choices), said


UNDRAFTED: dict[str, tuple[Callable[[int], dict[str, object]], str, str, str, str]] = {
    "kto": (
        lambda n: {"prompt": f"Who is {n}?", "completion": "Me.", "label": n % 2 == 0},
        "",
        "holds prompts with answers that are marked good or bad: `toolkit new` does not draft the task for them, KTO",
        "kto_smollm2_zero2",
        "; to learn only the good answers, keep the rows whose label is true",
    ),
    "kto_as_numbers": (
        lambda n: {"question": f"Who is {n}?", "answer": "Me.", "label": n % 2},
        "",
        "KTO (task.name kto)",
        "kto_smollm2_zero2",
        "--task.prompt_field question --task.completion_field answer;",
    ),
    "kto_with_columns": (
        lambda n: {"prompt": f"Who is {n}?", "completion": "Me.", "label": str(n % 2 == 0)},
        "--task.prompt_field prompt",
        "KTO (task.name kto)",
        "kto_smollm2_zero2",
        "--task.prompt_field prompt;",
    ),
    "kto_by_name": (
        lambda n: {"prompt": f"Who is {n}?", "completion": "Me.", "good": n % 2 == 0},
        "--task.name kto --task.label_field good",
        "task.name='kto': `toolkit new` does not draft this task yet",
        "kto_smollm2_zero2",
        "--task.label_field good",
    ),
    "preferences": (
        lambda n: {"chosen": f"Me, {n}.", "rejected": "You.", "input": "Who?"},
        "--steps 7",
        "holds preferences: a better and a worse answer",
        "dpo_smollm2_zero2",
        "--task.prompt_field input --steps 7; or learn the better answers alone",
    ),
    "reward_model": (
        lambda n: {"chosen": f"Me, {n}.", "rejected": "You.", "prompt": "Who?"},
        "--task.name reward_model",
        "task.name='reward_model'",
        "reward_smollm2_zero3",
        "--data.train rows.jsonl",
    ),
    "simpo": (
        lambda n: {"chosen": f"Me, {n}.", "rejected": "You.", "prompt": "Who?"},
        "--task.name simpo",
        "task.name='simpo'",
        "dpo_smollm2_zero2",
        "--task.name simpo",
    ),
    "masked_lm": (
        lambda n: {"body": f"Line {n} of a text."},
        "--from mlm_minilm_brown_zero1",
        "task.name='masked_lm'",
        "mlm_minilm_brown_zero1",
        "--task.text_field body",
    ),
    "tags": (
        lambda n: {"tokens": ["A", str(n)], "ner_tags": ["O", "B-X"]},
        "--devices 1",
        "holds lists of words with a label for each",
        "tag_minilm_brown_zero1",
        "--task.words_field tokens --task.labels_field ner_tags --launch.devices 1",
    ),
    "tags_by_source": (
        lambda n: {"words": ["A", str(n)], "labels": ["O", "B-X"]},
        "--from tag_minilm_brown_zero1",
        "task.name='token_classification'",
        "tag_minilm_brown_zero1",
        "--task.labels_field labels",
    ),
    "qa": (
        lambda n: {"question": f"Who {n}?", "context": "Me.", "answers": {"text": ["Me"], "answer_start": [0]}},
        "",
        "holds questions with a context and the answers in it",
        "qa_minilm_docstrings_zero3",
        "--data.train rows.jsonl",
    ),
    "translation": (
        lambda n: {"translation": {"en": f"Word {n}", "fr": f"Mot {n}"}},
        "",
        "holds translations",
        "translate_bert2bert_debian_zero2",
        "--task.source_language en --task.target_language fr",
    ),
    "pairs_to_translate": (
        lambda n: {"src": f"Word {n}", "tgt": f"Mot {n}"},
        "--from translate_bert2bert_debian_zero2",
        "task.name='seq2seq'",
        "translate_bert2bert_debian_zero2",
        "--task.source_field src --task.target_field tgt",
    ),
    "unusual_columns": (
        lambda n: {"frage": f"Who {n}?", "antwort": f"It is {n}."},
        "--from embed_minilm_debian_zero1",
        "task.name='sentence_embedding'",
        "embed_minilm_debian_zero1",
        "--task.anchor_field COLUMN --task.positive_field COLUMN (COLUMN: one of frage, antwort)",
    ),
    "embedding": (
        lambda n: {"query": f"Who {n}?", "passage": f"It is {n}.", "odd": n},
        "--from embed_minilm_debian_zero1",
        "task.name='sentence_embedding'",
        "embed_minilm_debian_zero1",
        "--task.anchor_field query --task.positive_field passage",
    ),
}
"""Of rows: what they are, the flags, what is said of them, the recipe to copy and what its start has."""


@pytest.mark.parametrize("case", UNDRAFTED)
def test_another_task_is_refused_with_the_recipe_to_copy(
    case: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written, and the start that is advised is one: the copy takes its flags."""
    row, flags, what, stem, then = UNDRAFTED[case]
    write_lines(here / "rows.jsonl", [row(n) for n in range(40)])
    assert verbs.main(["new", "mine", "--data", "rows.jsonl", *flags.split()]) == 2
    said = capsys.readouterr().err
    assert what in said and f"copy the recipe {stem} (" in said and then in said, said
    assert not (here / "recipes").exists()
    command = re.search(r"start it: (deepspeed .*? recipes/mine\.py) ([^;(\n]*)", said)
    assert command is not None
    (here / "recipes").mkdir()
    shutil.copy(new.SHIPPED / f"{stem}.py", here / "recipes/mine.py")
    capsys.readouterr()
    code = start(load_recipe("recipes/mine.py"), [*shlex.split(command[2]), "--dry_run"])
    assert code == 0, capsys.readouterr().err


def test_rows_are_learned_as_the_user_says(make: Callable[..., tuple[Recipe, str]], here: Path) -> None:
    """A task or a column that is named settles what answers that are marked are for."""
    write_lines(here / "kto.jsonl", [{"prompt": f"{n}?", "completion": "Me.", "label": n % 2 == 0} for n in range(40)])
    recipe, _ = make("--task.name", "causal_lm", data="kto.jsonl")
    assert (recipe.task.name, recipe.task.prompt_field) == ("causal_lm", "prompt")


def test_a_flag_is_called_as_it_was_typed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for typed in ("--task.prompt_feld", "--task.prompt-feld"):
        assert verbs.main(["new", "mine", "--data", "chats.jsonl", typed, "q"]) == 2
        assert f"unknown flag {typed} (did you mean --task.prompt_field?)" in capsys.readouterr().err


def test_help_says_what_is_drafted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        verbs.main(["new", "--help"])
    assert "language models (causal_lm) and classifiers of texts (sequence_classification)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("label", "what"),
    [
        (lambda n: float(n % 2), "row 1 of data.train, 'faulty.jsonl': task.label_field='label' gives 0.0"),
        (lambda n: None if n == 4 else n % 2, "row 5 of data.train, 'faulty.jsonl': task.label_field='label' is null"),
        (lambda n: -1 if n == 4 else n % 2, "row 5 of data.train, 'faulty.jsonl': task.label_field='label' is -1"),
    ],
    ids=["floats", "null", "-1"],
)
def test_faulty_labels_are_refused_as_in_training(
    here: Path, capsys: pytest.CaptureFixture[str], tiny_bert_dir: Path, label: Callable[[int], object], what: str
) -> None:
    lines = [{"text": f"This is line {n} of many.", "label": label(n)} for n in range(60)]
    write_lines(here / "faulty.jsonl", lines)
    assert verbs.main(["new", "sorted", "--model", str(tiny_bert_dir), "--data", "faulty.jsonl"]) == 2
    assert what in capsys.readouterr().err


def test_a_name_is_understood_or_refused(here: Path) -> None:
    assert [new.checked_name(text) for text in ("a_b_c", "a_b_c.py", "recipes/a_b_c.py", "./a-b.py")] == [
        *["a_b_c"] * 3,
        "a-b",
    ]


WRONG = [
    ("other/mine", "", "NAME 'other/mine' names another folder", "with the name 'mine'"),
    ("json", "", "NAME 'json' is the name of a Python module", "call it 'sft_json_zero2'"),
    ("toolkit.py", "", "NAME 'toolkit.py' is the name of a Python module", "call it 'sft_toolkit_zero2'"),
    ("n" * 300, "", "NAME 'nnn", "call it 'nnn"),
    ("my.own", "", "NAME 'my.own'", "call it 'my_own'"),
    ("there", "", "recipes/there.py exists already", "or overwrite it with --force"),
    ("folder", "", "recipes/folder.py is a folder", "choose another NAME"),
    ("x", "--from sft_smolm2_zero2", "--from sft_smolm2_zero2: no such recipe (did you mean 'sft_smollm2_zero2'?)", "correct"),
    ("x", "--from nowhere/x.py", "recipe file 'nowhere/x.py' does not exist", "check the path"),
    ("x", "--steps none", "--steps none", "see `toolkit new --help`"),
    ("x", "--dry_run", "--dry_run with `toolkit new`", "when the recipe is started"),
    ("x", "--modle P", "unknown flag --modle (did you mean --model?)", "docs/fields.md"),
    ("x", "--lr 1e-4", "unknown flag --lr: here it is --optimizer.learning_rate", "pass --optimizer.learning_rate 1e-4"),
    ("x", "--max-steps 5", "unknown flag --max_steps: here it is --steps", "pass --steps 5"),
    ("x", "--run_name y", "--run_name with `toolkit new`", "when the recipe is started"),
    ("x", "--betas 0.9 0.95", "unknown flag --betas (did you mean --optimizer.betas?)", "docs/fields.md"),
    ("x", "--xyzzy 1", "unknown flag --xyzzy\n", "docs/fields.md"),
    ("x", "--launch.device gpu", "--launch.device gpu (did you mean 'cuda'?)", "--help"),
    ("x", "--optimizer.rate 1", "unknown flag --optimizer.rate", "--help"),
    ("x", "--optimizer.learning_rate fast", "--optimizer.learning_rate fast", "--help"),
    ("x", "stray", "unexpected 'stray' on the command line", "--help"),
    ("x", "--data nothing.csv", "data.train='nothing.csv' does not exist", "correct the path"),
    ("x", "--data empty.jsonl", "data.train='empty.jsonl' has no rows", "point data.train to another one"),
    ("x", "--data broken.jsonl", "line 2 is not JSON", "repair or remove the line"),
    ("x", "--data unanswered.jsonl", "row 2 of data.train, 'unanswered.jsonl': completion is empty", "fill it in"),
    ("x", "--data lacking.jsonl", "row 1 of data.train, 'lacking.jsonl': output is not there, while other rows have it", "write it there"),
    ("x", "--data context.jsonl", "no token of the 3 rows of data.train carries loss (left out: 3 with nothing to learn)\n  expected: answers to learn: those with \"weight\": 0 are only context", "take \"weight\": 0 from"),
    ("x", "--data blank.jsonl", "none of the 3 rows of data.train gave an example (left out: 3 empty)\n  expected: text in the rows\n", "check the columns"),
    ("x", "--data odd.csv", "'odd.csv': its columns do not say by themselves what is to be learned:\n    a  '1'\n    b  'x'", "--task.text_field a"),
    ("x", "--evaluation odd.csv", "row 1 of data.evaluation, 'odd.csv': the columns a, b", "set"),
    ("x", "--model nowhere", "model.path='nowhere'", "check the path"),
    ("x", "--model notokenizer", "model.path='notokenizer': its tokenizer cannot be loaded", "set model.tokenizer"),
    ("x", "--model recipes", "model.path='recipes' holds no model: it has no config.json, only folder.py, there.py", "set model.path"),
    ("x", "--model nothing", "model.path='nothing' holds no model: it has no config.json, it is empty", "set model.path"),
    ("x", "--model run", "model.path='run' holds no model: it has no config.json, only export, model", "such as run/export"),
    ("x", "--model noweights", "model.path='noweights': its model cannot be loaded", "set model.path"),
    ("x", "--model {bert}", "BertLMHeadModel lets a token see those after it", "choose a decoder"),
    ("x", "--from classify_minilm_zero1", "its columns do not say by themselves", "give a file with a column of texts and one of classes"),
    ("x", "--evaluation.metric accuracy --checkpoint.keep_best True", "evaluation.metric='accuracy' with task.name='causal_lm'", "correct"),
    ("x", "--batch.sequence_length 1000", "batch.sequence_length=1000 is longer than the model's 512 positions", "512 or less"),
    ("x", "--devices 300", "launch.devices=300 for data of 190 sequences", "give --devices 1, or more data"),
    ("x", "--model base", "messages holds conversations, but the tokenizer has no chat template", "model.tokenizer"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "flags", "what", "do"), WRONG, ids=lambda value: value[:40] or "-")
def test_wrong_inputs_leave_nothing_behind(
    name: str,
    flags: str,
    what: str,
    do: str,
    here: Path,
    tiny_llama_dir: Path,
    tiny_bert_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One message with its fix, exit code 2, no file."""
    (here / "recipes/folder.py").mkdir(parents=True)
    (here / "recipes/there.py").write_text("")
    (here / "empty.jsonl").write_text("")
    (here / "broken.jsonl").write_text('{"text": "One."}\n{"text"\n')
    write_lines(here / "unanswered.jsonl", [{"prompt": "A?", "completion": text} for text in ("Yes.", " ")])
    alpaca = [{"instruction": f"Say {number}.", "output": "Yes."} for number in range(40)]
    write_lines(here / "lacking.jsonl", [{"instruction": "Say it.", "input": ""}, *alpaca])
    context = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "Yes.", "weight": 0}]
    write_lines(here / "context.jsonl", [{"messages": context}] * 3)
    write_lines(here / "blank.jsonl", [{"text": " "}] * 3)
    (here / "odd.csv").write_text("a,b\n1,x\n2,z\n")
    for broken in ("notokenizer", "noweights", "base"):
        shutil.copytree(tiny_llama_dir, here / broken)
    for file in (here / "notokenizer").glob("*token*"):
        file.unlink()
    (here / "noweights/model.safetensors").unlink()
    (here / "nothing").mkdir()
    for part in ("export", "model"):
        shutil.copytree(tiny_llama_dir, here / "run" / part)
    (here / "base/chat_template.jinja").unlink()
    words = flags.format(bert=tiny_bert_dir).split()
    defaults = [
        word for key, value in (("--model", str(tiny_llama_dir)), ("--data", "chats.jsonl")) for word in (key, value)
    ]
    assert verbs.main(["new", name, *defaults, *words]) == 2
    error = capsys.readouterr().err
    assert what in error and do in error.partition("do this: ")[2], error
    assert sorted(path.name for path in (here / "recipes").iterdir()) == ["folder.py", "there.py"]
    assert not (here / "ds_configs").exists()


OBSTACLES: dict[str, Callable[[Path], object]] = {
    "recipes is a file": lambda here: (here / "recipes").write_text(""),
    "ds_configs is a file": lambda here: (here / "ds_configs").write_text(""),
    "ds_configs is a link to gone, which is not there": lambda here: (here / "ds_configs").symlink_to("gone"),
    "recipes/mine.py is a folder": lambda here: (here / "recipes/mine.py").mkdir(parents=True),
    "ds_configs/mine.json is a folder": lambda here: (here / "ds_configs/mine.json").mkdir(parents=True),
}


@pytest.mark.parametrize("what", OBSTACLES)
def test_an_obstacle_to_writing_is_known_before_anything_is_looked_at(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    monkeypatch.setattr(new, "draft", lambda *_: pytest.fail("went on to look at model and data"))
    OBSTACLES[what](here)
    before = sorted(here.rglob("*"))
    assert verbs.main(["new", "mine", "--data", "chats.jsonl", "--force"]) == 2
    said = capsys.readouterr().err
    assert what in said and "do this:  choose another" in said and "current folder" in said
    assert sorted(here.rglob("*")) == before


def test_a_recipe_that_is_a_link_to_nowhere_is_not_free(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "recipes").mkdir()
    (here / "recipes/mine.py").symlink_to("gone")
    assert verbs.main(["new", "mine", "--data", "chats.jsonl"]) == 2
    assert "recipes/mine.py exists already" in capsys.readouterr().err


def test_disks_that_take_nothing_or_too_little(
    here: Path, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first is known before, the second when it is full; no half of a recipe stays on it."""
    words = ["new", "mine", "--model", str(tiny_llama_dir), "--data", str(here / "chats.jsonl")]
    with read_only(here / "closed") as disk, monkeypatch.context() as inside:
        inside.chdir(disk)
        inside.setattr(new, "draft", lambda *_: pytest.fail("went on to look at model and data"))
        assert verbs.main(words) == 2
        said = capsys.readouterr().err
        assert f"nothing can be written to recipes/ of {disk}: . cannot be written to (Read-only file system)" in said
    with small_disk(here / "small", 8192) as disk, monkeypatch.context() as inside:
        inside.chdir(disk)
        assert verbs.main(words) == 1
        said = capsys.readouterr().err
        assert f"error: writing the recipe mine in {disk} failed: No space left on device\n" in said
        assert "do this:  free space, or work in a folder on another disk" in said
        assert not [path for path in disk.rglob("*") if path.is_file()]


def test_without_a_folder_of_recipes_the_source_is_asked_for(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the package was installed without its repository."""
    monkeypatch.setattr(new, "SHIPPED", here / "nowhere")
    assert verbs.main(["new", "x_y_z", "--data", "chats.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "neither ./recipes nor" in error and "give --from PATH" in error


def test_help_teaches_fields_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        verbs.main(["new", "--help"])
    printed = capsys.readouterr().out
    assert "--task.prompt_field frage --task.completion_field antwort" in printed
    assert all(example.split("   ")[0] in printed for example in new.EXAMPLES)
