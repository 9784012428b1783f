"""Wrong inputs through the real entry points: exit code 2, one message with key and value, never a traceback."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.tiny import judged, preferences, write_lines
from toolkit.cli import run, verbs
from toolkit.recipe import Batch, Data, Model, Parallel, Precision, Recipe, Tracking

MESSAGE = re.compile(
    r"^error(?: \[rank \d+\])?: (?P<what>.+)\n  expected: (?P<expected>.+)\n  do this:  (?P<do>.+?)\n",
    re.DOTALL | re.MULTILINE,
)
LAUNCHER_VARIABLES = re.compile(r"(WORLD_SIZE|RANK|LOCAL_.*|MASTER_.*|ACCELERATE_.*|OMPI_.*|PMI_.*|SLURM_.*)")
SEE_HELP = "see `x.py --help` for every field, its type and meaning"


class Wrong(NamedTuple):
    """One wrong start: flags and environment, and what each of the three lines must hold. {names} are of `Ground`."""

    id: str
    flags: str
    what: str
    expected: str
    do: str
    environment: str = ""


class Ground:
    """A recipe that works, and the files around it that do not."""

    def __init__(self, tmp: Path, llama: Path, bert: Path, chats: Path, classes: Path) -> None:
        self.tmp = tmp
        self.names = {"tmp": tmp, "llama": llama, "bert": bert, "chats": chats, "classes": classes}
        self.recipe = Recipe(
            model=Model(path=str(llama)),
            data=Data(train=str(chats)),
            batch=Batch(global_size=4, sequence_length=128),
            precision=Precision(dtype="fp32"),
            parallel=Parallel(zero_stage=2),
            tracking=Tracking(tensorboard=False),
            steps=2,
        )
        self._write_data()
        self._write_models(llama)
        self._write_runs()

    def _write_data(self) -> None:
        good = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]}
        lines = [json.dumps(good)] * 3
        (self.tmp / "bad_line.jsonl").write_text("\n".join([*lines[:2], '{"messages": [', lines[0]]) + "\n")
        (self.tmp / "empty.jsonl").write_text("")
        (self.tmp / "data.tar").write_text("x")
        os.mkfifo(self.tmp / "pipe.jsonl")
        write_lines(self.tmp / "good.jsonl", [good] * 3)
        write_lines(self.tmp / "columns.jsonl", [{"subject": "Why?", "body": "So it is."}])
        prompt = [{"role": "user", "content": "word " * 400}, {"role": "assistant", "content": "Yes."}]
        write_lines(self.tmp / "long_prompts.jsonl", [{"messages": prompt}] * 3)
        write_lines(self.tmp / "other_class.jsonl", [{"text": "A module.", "label": "module"}] * 4)
        write_lines(self.tmp / "judged.jsonl", judged(4))
        write_lines(self.tmp / "pairs.jsonl", preferences(4))
        texts = [{"text": text, "label": label} for text, label in (("One.", "a"), (" ", "b"), ("Two.", "a"))]
        write_lines(self.tmp / "no_text.jsonl", texts)
        (self.tmp / "edited.json").write_text('{"train_batch_size": 4, "zero_optimization": {"stage": 3}}')
        (self.tmp / "broken.json").write_text('{"train_batch_size": 4,, }}')

    def _write_models(self, llama: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(llama)
        tokenizer.chat_template = None
        tokenizer.save_pretrained(self.tmp / "no_template")
        tokenizer.pad_token = None
        tokenizer.save_pretrained(self.tmp / "no_padding")

    def _write_runs(self) -> None:
        (self.tmp / "a_file").write_text("x")
        other = self.tmp / "other_run"
        other.mkdir()
        (other / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        (other / "recipe.json").write_text(json.dumps(self.recipe.model_dump(mode="json")))
        (self.tmp / "strangers/b").mkdir(parents=True)
        (self.tmp / "strangers/a.txt").write_text("x")
        damaged = self.tmp / "damaged_run"
        damaged.mkdir()
        (damaged / "recipe.json").write_text('{"model":')
        (self.tmp / "syntax.py").write_text("from toolkit import Recipe\n\nrecipe = Recipe(\n")
        (self.tmp / "crash.py").write_text("import toolkit\n\nrecipe = toolkit.Recipee()\n")
        (self.tmp / "nothing.py").write_text("recipes = 3\n")
        (self.tmp / "full").mkdir()
        (self.tmp / "full" / "x").write_text("x")


@pytest.fixture(scope="module")
def ground(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama_dir: Path,
    tiny_bert_dir: Path,
    chat_file: Path,
    classification_file: Path,
) -> Ground:
    return Ground(
        tmp_path_factory.mktemp("ground"), tiny_llama_dir, tiny_bert_dir, chat_file, classification_file
    )  # fmt: skip


@pytest.fixture
def refused(
    ground: Ground, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., re.Match[str]]]:
    """A function that starts something wrong and returns the message, taken apart."""
    for name in [name for name in os.environ if LAUNCHER_VARIABLES.fullmatch(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TOOLKIT_CACHE", str(ground.tmp / "cache"))
    monkeypatch.setattr("sys.argv", ["x.py"])

    def start(program: Callable[[], int]) -> re.Match[str]:
        capfd.readouterr()
        code = program()
        said = capfd.readouterr().err
        assert "Traceback" not in said
        assert code == 2, said
        found = MESSAGE.search(said)
        assert found, said
        return found

    return start


def holds(found: re.Match[str], wrong: Wrong, names: dict[str, Any]) -> None:
    for part in ("what", "expected", "do"):
        wanted = getattr(wrong, part).format(**names)
        assert wanted and wanted in found[part], f"{part}: {found[part]!r} should hold {wanted!r}"


COMMAND_LINE = [
    Wrong("unknown-flag", "--batch.micro_sise 2", "unknown flag --batch.micro_sise (did you mean --batch.micro_size?)", "a recipe field or one of --output_dir", "see --help"),
    Wrong("unknown-flag-in-other-section", "--betas 0.9 0.95", "unknown flag --betas (did you mean --optimizer.betas?)", "a recipe field", "see --help"),
    Wrong("section-as-flag", "--optimizer adamw", "unknown flag --optimizer (a section; its fields are flags, such as --optimizer.type)", "a recipe field", "see --help"),
    Wrong("stray-word", "--steps 3 twice", "unexpected 'twice' on the command line after --steps", "flags, each with as many values as it takes", SEE_HELP),
    Wrong("no-value", "--output_dir", "--output_dir has no value", "a folder", SEE_HELP),
    Wrong("word-for-an-integer", "--steps many", "--steps many", "an integer greater than 0, or None", SEE_HELP),
    Wrong("fraction-for-an-integer", "--batch.micro_size=2.5", "--batch.micro_size 2.5", "an integer greater than 0", SEE_HELP),
    Wrong("true-for-an-integer", "--batch.micro-size True", "--batch.micro_size True", "an integer greater than 0", SEE_HELP),
    Wrong("word-for-a-switch", "--data.packing=maybe", "--data.packing maybe", "True or False", "see --help"),
    Wrong("one-of-two-values", "--optimizer.betas 0.9", "--optimizer.betas 0.9", "2 values, each a number at least 0 and less than 1, or None", "write the values with spaces between them"),
    Wrong("a-comma-between-values", "--task.name image_classification --task.crop_scale 1,1", "--task.crop_scale 1,1", "2 values, each a number greater than 0 and at most 1", "write the values with spaces between them, for instance --task.crop_scale 0.08 1.0"),
    Wrong("no-choice", "--checkpoint.export_dtype fp8", "--checkpoint.export_dtype fp8", "one of fp32, bf16, fp16", SEE_HELP),
    Wrong("gpu-for-cuda", "--launch.device gpu", "--launch.device gpu (did you mean 'cuda'?)", "one of auto, cpu, cuda", SEE_HELP),
    Wrong("bfloat16-for-bf16", "--precision.dtype bfloat16", "--precision.dtype bfloat16 (did you mean 'bf16'?)", "one of auto, fp32, bf16, fp16", SEE_HELP),
    Wrong("negative", "--batch.micro_size -2", "batch.micro_size=-2", "input should be greater than 0", "correct the recipe or the flag"),
    Wrong("zero", "--steps 0", "steps=0", "input should be greater than 0", "correct the recipe or the flag"),
    Wrong("not-a-number", "--optimizer.learning_rate nan", "optimizer.learning_rate=nan", "input should be a finite number", "correct the recipe or the flag"),
    Wrong("two-lengths", "--epochs 2 --steps 2", "steps=2 and epochs=2.0", "exactly one of the two", "pass e.g. --epochs None"),
    Wrong("unknown-task", "--task.name causal", "task.name='causal' (did you mean 'causal_lm'?)", "one of causal_lm, ", "correct task.name"),
    Wrong("unknown-optimizer", "--optimizer.type adamx", "--optimizer.type adamx", "one of sgd, sgd_momentum, adagrad, rmsprop, adam, adamw, lion, muon", SEE_HELP),
    Wrong("parameter-of-another-optimizer", "--optimizer.type lion --optimizer.momentum 0.9", "optimizer.momentum=0.9 with optimizer.type='lion'", "lion has betas; momentum belongs to sgd_momentum, rmsprop, muon", "remove optimizer.momentum"),
    Wrong("lion-at-stage-0", "--optimizer.type lion --parallel.zero_stage 0 --launch.device cpu", "optimizer.type='lion' with parallel.zero_stage=0 on a CPU device", "zero_stage 1, 2 or 3", "set parallel.zero_stage=1"),
    Wrong("muon-with-clipping", "--optimizer.type muon", "optimizer.max_grad_norm=1.0 with optimizer.type='muon'", "0: DeepSpeed clips Muon's orthogonalised update", "set optimizer.max_grad_norm=0"),
    Wrong("step-without-size", "--schedule.type step", "schedule.step_size is missing for schedule.type='step'", "the number of optimizer steps between two drops", "set schedule.step_size"),
    Wrong("offload-below-stage-3", "--parallel.offload_param cpu", "parallel.offload_param='cpu' with parallel.zero_stage=2", "zero_stage 3", "set parallel.zero_stage=3"),
    Wrong("nvme-without-path", "--parallel.zero_stage 3 --parallel.offload_param nvme", "parallel.nvme_path is missing for offload to 'nvme'", "a directory on a local NVMe disk", "set parallel.nvme_path"),
    Wrong("sequence-with-tensor", "--parallel.sequence 2 --parallel.tensor 2", "parallel.sequence=2 with parallel.tensor=2", "sequence parallelism with data parallelism only", "set parallel.tensor=1, or parallel.sequence=1"),
    Wrong("sequence-with-pipeline", "--parallel.sequence 2 --parallel.pipeline 2 --parallel.zero_stage 1", "parallel.sequence=2 with parallel.pipeline=2", "sequence parallelism with data parallelism only", "set parallel.pipeline=1, or parallel.sequence=1"),
    Wrong("nothing-to-offload", "--model.activation_offload True", "model.activation_offload=True with model.activation_checkpointing=False", "activation_checkpointing=True", "set model.activation_checkpointing=True"),
    Wrong("compile-from-disk", "--model.compile True --parallel.zero_stage 3 --parallel.offload_param nvme --parallel.nvme_path /tmp", "model.compile=True with parallel.offload_param='nvme'", "parameters in memory", "set parallel.offload_param='cpu', or model.compile=False"),
    Wrong("kernels-and-compile", "--model.kernels liger --model.compile True", "model.kernels='liger' with model.compile=True", "one of the two", "set model.kernels='auto', or model.compile=False"),
    Wrong("field-without-effect", "--parallel.zero_stage 0 --parallel.reduce_bucket_size 1000", "parallel.reduce_bucket_size=1000 has no effect with parallel.zero_stage=0, precision.dtype='fp32'", "parallel.reduce_bucket_size acts with parallel.zero_stage 1, 2 or 3 only", "on the command line: --parallel.reduce_bucket_size None"),
    Wrong("field-of-another-task", "--task.name sequence_classification --task.train_on all", "unknown flag --task.train_on for task.name='sequence_classification' (causal_lm, image_text_to_text have it)", "a field of sequence_classification: name, text_field, second_text_field, label_field", "leave it out, or choose the other with --task.name causal_lm"),
    Wrong("field-of-many-tasks", "--task.name masked_lm --task.label_field kind", "unknown flag --task.label_field for task.name='masked_lm'", "a field of masked_lm: ", "choose the other with --task.name sequence_classification"),
    Wrong("labels-of-words", "--task.name token_classification --task.label_field tags", "unknown flag --task.label_field for task.name='token_classification' (did you mean --task.labels_field?)", "a field of token_classification: ", "write --task.labels_field"),
    Wrong("tags-of-words", "--task.name token_classification --task.tags_field tags", "(did you mean --task.labels_field?)", "a field of token_classification: ", "write --task.labels_field"),
    Wrong("removed-field", "--evaluation.max_batches 8", "evaluation.max_batches='8': there is no such field any more", "evaluation.max_sequences, another unit", "set evaluation.max_sequences instead"),
    Wrong("warm-up-beyond-the-run", "--schedule.type cosine --schedule.warmup_steps 5", "schedule.warmup_steps=5 in a run of 2 steps", "schedule.warmup_steps below 2", "pass --schedule.warmup_steps 1"),
    Wrong("no-tiles", "--model.mlp_tiles 0", "model.mlp_tiles=0", "input should be greater than 0", "correct the recipe or the flag"),
    Wrong("unknown-metric", "--evaluation.metric perplexty --data.evaluation_examples 8 --evaluation.every_steps 1 --checkpoint.keep_best True", "evaluation.metric='perplexty' with task.name='causal_lm' (did you mean 'perplexity'?)", "one of loss, perplexity", "correct evaluation.metric"),
    Wrong("sequence-of-classes", "--task.name sequence_classification --data.packing False --parallel.sequence 2", "parallel.sequence=2 with task.name='sequence_classification'", "parallel.pipeline or parallel.tensor: this task cannot be cut otherwise", "set parallel.sequence=1", "WORLD_SIZE=2 RANK=0 MASTER_ADDR=localhost MASTER_PORT=29500"),
    Wrong("stages-of-an-encoder-with-a-decoder", "--dry_run --task.name seq2seq --data.packing False --parallel.pipeline 2 --parallel.zero_stage 1", "parallel.pipeline=2 with task.name='seq2seq'", "parallel.tensor: this task cannot be cut otherwise", "set parallel.pipeline=1"),
    Wrong("tensors-of-embeddings", "--dry_run --task.name sentence_embedding --data.packing False --parallel.tensor 2", "parallel.tensor=2 with task.name='sentence_embedding'", "data parallelism and ZeRO", "set parallel.tensor=1"),
    Wrong("metric-that-is-not-asked-for", "--dry_run --task.name seq2seq --data.packing False --evaluation.metric bleu --data.evaluation_examples 8 --evaluation.every_steps 1 --checkpoint.keep_best True", "evaluation.metric='bleu' with task.name='seq2seq' and task.scores=()", "'bleu' in task.scores", "set task.scores to bleu"),
    Wrong("rank-by-one-letter", "--tuning.name lora --tuning.r 8", "unknown flag --tuning.r: here it is --tuning.rank", "--tuning.rank, for the same values", "pass --tuning.rank 8"),
    Wrong("indivisible-batch", "", "batch.global_size=4 is not a multiple of batch.micro_size x world size = 1 x 3 = 3", "a multiple of 3", "set batch.global_size to 3 or 6", "WORLD_SIZE=3 RANK=0 MASTER_ADDR=localhost MASTER_PORT=29500"),
    Wrong("batch-of-fewer-rows-per-rank", "--batch.micro_size 2", "batch.global_size=4 is not a multiple of batch.micro_size x world size = 2 x 4 = 8", "a multiple of 8", "pass --batch.micro_size 1 (the same batch), set batch.global_size to 8, or start another number of processes", "WORLD_SIZE=4 RANK=0 MASTER_ADDR=localhost MASTER_PORT=29500"),
    Wrong("no-master", "", "WORLD_SIZE=2 without MASTER_ADDR and MASTER_PORT", "the environment of a launcher", "start with `deepspeed`, `accelerate launch` or `torchrun`, or unset WORLD_SIZE", "WORLD_SIZE=2 RANK=0"),
    Wrong("world-size-in-words", "", "WORLD_SIZE='two' in the environment", "a number, at least 1", "unset WORLD_SIZE", "WORLD_SIZE=two RANK=0"),
    Wrong("rank-outside", "", "RANK=2 with WORLD_SIZE=2", "ranks from 0 to 1", "unset both", "WORLD_SIZE=2 RANK=2 LOCAL_RANK=0 MASTER_ADDR=localhost MASTER_PORT=29500"),
    Wrong("no-such-port", "", "MASTER_PORT='99999' in the environment", "a port, 1 to 65535", "unset MASTER_PORT", "WORLD_SIZE=1 RANK=0 MASTER_ADDR=localhost MASTER_PORT=99999"),
    Wrong("resume-misspelt", "--resume auot", "--resume auot (did you mean 'auto'?)", "auto, or a checkpoint folder", "write --resume auto"),
    Wrong("config-is-no-json", "--model.config {{hidden_size", "--model.config '{{hidden_size' is not JSON", "pairs of a name and its value", "hidden_size 32"),
    Wrong("no-deepspeed-config", "--deepspeed_config {tmp}/nowhere.json", "--deepspeed_config {tmp}/nowhere.json does not exist", "a DeepSpeed JSON file", "correct the path, or leave it out"),
    Wrong("deepspeed-config-is-no-json", "--deepspeed {tmp}/broken.json", "{tmp}/broken.json:1 is not JSON", "a JSON object {{...}}", "correct the file"),
    Wrong("deepspeed-config-contradicts", "--deepspeed_config={tmp}/edited.json", "{tmp}/edited.json: zero_optimization.stage is 3 there and 2 in the recipe", "the one source of truth", "set the recipe's fields to these values"),
    Wrong("accelerate-contradicts", "", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=7, the recipe has gradient_accumulation_steps=4", "the one source of truth", "set the recipe's fields", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=7 ACCELERATE_USE_DEEPSPEED=true"),
    Wrong("output-dir-is-a-file", "--output_dir {tmp}/a_file", "--output_dir {tmp}/a_file: {tmp}/a_file is a file", "a folder this user may write to", "pass another --output_dir"),
    Wrong("output-dir-cannot-be-written", "--output_dir /proc/nowhere", "--output_dir /proc/nowhere: /proc cannot be written to", "a folder this user may write to", "pass another --output_dir"),
    Wrong("output-dir-holds-a-run", "--output_dir {tmp}/other_run", "--output_dir {tmp}/other_run already holds a run", "a new folder, or --resume", "pass --resume auto to continue it"),
    Wrong("output-dir-of-an-unset-variable", "--output_dir=", "--output_dir ''", "a path: this one is empty, as of a shell variable that is not set", "correct the path"),
    Wrong("resume-of-an-unset-variable", "--resume=", "--resume ''", "a path: this one is empty", "correct the path"),
    Wrong("deepspeed-config-of-an-unset-variable", "--deepspeed_config=", "--deepspeed_config ''", "a path: this one is empty", "correct the path"),
    Wrong("data-of-an-unset-variable", "--data.train=", "data.train=''", "a path: this one is empty", "correct the recipe or the flag"),
    Wrong("output-dir-of-others", "--output_dir {tmp}/strangers", "--output_dir {tmp}/strangers holds 2 files and folders, and nothing of a run: a.txt, b", "a folder that is new or empty, or a run's", "pass another --output_dir, such as {tmp}/strangers/run"),
    Wrong("resume-among-others", "--output_dir {tmp}/strangers --resume auto", "nothing of a run: a.txt, b", "a folder that is new or empty", "pass another --output_dir"),
    Wrong("preview-of-less-than-nothing", "--preview -1", "--preview -1", "an integer of at least 1", "pass --preview 2"),
    Wrong("preview-of-nothing", "--preview=0", "--preview 0", "an integer of at least 1", "leave it out"),
    Wrong("resume-of-another-recipe", "--output_dir {tmp}/other_run --resume auto --batch.global_size 8", "batch.global_size=8 (the run has 4)", "the fields that decide what a step is", "take the flags back"),
    Wrong("changed-data-without-resume", "--resume_changed_data", "--resume_changed_data without --resume", "a run to continue on other data", "pass --resume auto as well"),
    Wrong("resume-of-other-order", "--output_dir {tmp}/other_run --resume auto --data.shuffle False", "data.shuffle=False (the run has True)", "the fields that decide what a step is", "take the flags back, or start a new run in another --output_dir, or pass --resume_changed_data"),
    Wrong("resume-of-nothing", "--resume {tmp}/nowhere", "{tmp}/nowhere does not exist", "a folder such as RUN/checkpoints/step-00000100", "give the run folder or one of its checkpoints"),
    Wrong("resume-of-a-damaged-run", "--output_dir {tmp}/damaged_run --resume auto", "{tmp}/damaged_run/recipe.json is not readable as a recipe", "the recipe of the run", "start again in another --output_dir"),
    Wrong("missing-data", "--data.train {tmp}/god.jsonl", "data.train='{tmp}/god.jsonl' does not exist (did you mean 'good.jsonl'?)", "an existing file or directory", "correct the path"),
    Wrong("unread-suffix", "--data.train {tmp}/data.tar", "data.train='{tmp}/data.tar' is an archive of files", "a file ending in one of .jsonl", "unpack it, then give the folder or a file in it: mkdir {tmp}/data && tar -xf {tmp}/data.tar -C {tmp}/data"),
    Wrong("missing-evaluation", "--data.evaluation {tmp}/nowhere.jsonl", "data.evaluation='{tmp}/nowhere.jsonl' does not exist", "an existing file or directory", "correct the path"),
    Wrong("a-pipe", "--data.train {tmp}/pipe.jsonl", "data.train='{tmp}/pipe.jsonl': '{tmp}/pipe.jsonl' is a pipe, not a file", "a file, which every process can read", "write what comes from it to a file first"),
    Wrong("data-on-standard-input", "--data.train -", "data.train='-' does not exist", "an existing file or directory", "correct the path"),
]  # fmt: skip


@pytest.mark.parametrize("wrong", COMMAND_LINE, ids=lambda wrong: wrong.id)
def test_refused_before_any_heavy_import(
    wrong: Wrong, ground: Ground, refused: Callable[..., re.Match[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_far(*_: object) -> int:
        pytest.fail("went on to train")

    monkeypatch.setattr(run, "_train", too_far)  # the step that imports torch
    start(wrong, ground, refused, monkeypatch)


def start(wrong: Wrong, ground: Ground, refused: Callable[..., re.Match[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    for word in wrong.environment.format(**ground.names).split():
        monkeypatch.setenv(*word.split("=", 1))
    flags = wrong.flags.format(**ground.names).split()
    if not any(flag.startswith("--output_dir") for flag in flags):
        flags = ["--output_dir", str(ground.tmp / "run"), *flags]
    holds(refused(lambda: run.main(ground.recipe, flags)), wrong, ground.names)


TWO_RANKS = "WORLD_SIZE=2 RANK=0 MASTER_ADDR=localhost MASTER_PORT=29500"
CLASSIFY = "--task.name sequence_classification --data.packing False --model.path {bert} --data.train {classes} "
DATA_AND_MODEL = [
    Wrong("bad-line", "--data.train {tmp}/bad_line.jsonl", "data.train='{tmp}/bad_line.jsonl', line 3 is not JSON", "one JSON object per line", "repair or remove the line"),
    Wrong("empty-data", "--data.train {tmp}/empty.jsonl", "data.train='{tmp}/empty.jsonl' has no rows", "at least one row", "point data.train to another one"),
    Wrong("other-columns", "--data.train {tmp}/columns.jsonl", "row 1 of data.train, '{tmp}/columns.jsonl': the columns body, subject hold no training text", "task.messages_field='messages'", "set task.text_field='body' if it is plain text to learn, or task.prompt_field and task.completion_field to the columns of question and answer (subject, body)"),
    Wrong("everything-masked", "--data.train {tmp}/long_prompts.jsonl", "no token of the 3 rows of data.train carries loss (left out: 3 with all there is to learn beyond batch.sequence_length)", "examples with tokens to learn", "raise batch.sequence_length"),
    Wrong("overlong", "--data.overlong error --batch.sequence_length 16", "tokens and batch.sequence_length is 16", "examples that fit, since data.overlong='error'", "raise batch.sequence_length"),
    Wrong("all-rows-held-out", "--data.train {tmp}/good.jsonl --data.evaluation_examples 3", "data.evaluation_examples=3 of 3 rows", "fewer than there are rows", "lower data.evaluation_examples"),
    Wrong("longer-than-the-model", "--batch.sequence_length 1024", "batch.sequence_length=1024 is longer than the model's 512 positions", "at most 512", "set batch.sequence_length=512 or less"),
    Wrong("no-chat-template", "--model.tokenizer {tmp}/no_template", "messages holds conversations, but the tokenizer has no chat template", "a tokenizer with a chat template", "set model.tokenizer to one that has it"),
    Wrong("cache-is-a-file", "", "{tmp}/a_file", "cache directory", "set TOOLKIT_CACHE", "TOOLKIT_CACHE={tmp}/a_file"),
    Wrong("unknown-model", "--model.path {tmp}/nowhere", "model.path='{tmp}/nowhere': there is no such directory", "a Hugging Face directory", "check the path, or run `toolkit fetch NAME`"),
    Wrong("unknown-tokenizer", "--model.tokenizer {tmp}/nowhere", "model.tokenizer='{tmp}/nowhere': there is no such directory", "a Hugging Face directory", "check the path"),
    Wrong("misspelt-asset", "--model.path smollm2-135m-instuct", "model.path='smollm2-135m-instuct' (did you mean 'smollm2-135m-instruct'?): there is no such directory", "a name `toolkit fetch` knows", "run `toolkit fetch NAME`"),
    Wrong("unfetched-checkpoint", "--model.path smollm2-135m-instruct", "checkpoint 'smollm2-135m-instruct' is not fetched yet", "its files in {tmp}/cache/models/smollm2-135m-instruct", "run `toolkit fetch smollm2-135m-instruct`"),
    Wrong("unfetched-data", "--data.train python-docstrings", "data set 'python-docstrings' is not fetched yet", "its files in {tmp}/cache/data/python-docstrings", "run `toolkit fetch python-docstrings`"),
    Wrong("unknown-architecture", "--model.path None --model.architecture lama --model.weights random --model.tokenizer {llama}", "model.architecture='lama' (did you mean 'llama'?)", "a model_type of transformers", "correct model.architecture"),
    Wrong("unknown-config-field", "--model.config hiden_size 32", "model.config['hiden_size']=32: LlamaConfig has no such field (did you mean 'hidden_size'?)", "a field of the architecture's own config", "see config.json"),
    Wrong("config-changes-a-shape", "--model.config hidden_size 32", "model.config={{'hidden_size': 32}}: model.embed_tokens.weight has shape (640, 64) in the checkpoint and (640, 32) with it", "only fields that change no weight's shape", "model.weights='random'"),
    Wrong("config-of-another-type", "--model.config hidden_size wide", "model.config={{'hidden_size': 'wide'}}: no model can be built", "values of the architecture's own config that fit together", "correct model.config"),
    Wrong("no-dropout", "--model.path None --model.architecture mamba --model.weights random --model.tokenizer {llama} --model.dropout 0.1", "model.dropout=0.1: MambaConfig has no dropout", "an architecture with dropout, or None", "remove model.dropout"),
    Wrong("sequence-of-too-few-processes", "--parallel.sequence 2", "parallel.sequence=2 does not divide the 1 process of this run", "a multiple of 2 processes", "start 2 processes"),
    Wrong("degree-beside-heads", "--parallel.sequence 3", "parallel.sequence=3 with 4 attention heads and 2 key-value heads", "a degree that divides the heads", "set parallel.sequence to one of 2, 4", TWO_RANKS.replace("=2", "=3")),
    Wrong("sequence-and-eager", "--parallel.sequence 2 --model.attention eager", "eager attention with parallel.sequence=2", "'sdpa' or a flash_attention", "set model.attention='auto'", TWO_RANKS),
    Wrong("sequence-of-a-recurrent-model", "--model.path None --model.architecture mamba --model.weights random --model.tokenizer {llama} --parallel.sequence 2", "parallel.sequence=2: MambaConfig has linear_attention", "tokens meet in attention only", "set parallel.sequence=1", TWO_RANKS),
    Wrong("stages-of-one-layer", CLASSIFY + "--model.path None --model.architecture albert --model.weights random --model.tokenizer {bert} --parallel.pipeline 2 --parallel.zero_stage 1", "albert cannot be cut into pipeline stages: all its layers are one and the same", "an architecture with a pipeline plan", "set parallel.pipeline=1", TWO_RANKS),
    Wrong("judged-answers-for-pairs", "--task.name dpo --data.train {tmp}/judged.jsonl", "row 1 of data.train, '{tmp}/judged.jsonl': chosen is not there; the columns are completion, label, prompt", "chosen and rejected, two answers to one prompt; this is one answer with a judgement", "pass --task.name kto"),
    Wrong("pairs-for-judged-answers", "--task.name kto --data.train {tmp}/pairs.jsonl", "row 1 of data.train, '{tmp}/pairs.jsonl': label is not there; the columns are chosen, prompt, rejected", "completion and label, one answer with a judgement; these are two answers to one prompt", "pass --task.name dpo"),
    Wrong("pairs-for-classes", CLASSIFY + "--data.train {tmp}/pairs.jsonl", "row 1 of data.train, '{tmp}/pairs.jsonl': task.label_field='label' is not there", "an integer or a class name", "pass --task.name reward_model (or dpo, orpo, simpo)"),
    Wrong("empty-text", CLASSIFY + "--data.train {tmp}/no_text.jsonl", "row 2 of data.train, '{tmp}/no_text.jsonl': task.text_field='text' is empty", "text in every row", "remove the row, or write its text"),
    Wrong("packed-classes", CLASSIFY + "--data.packing True", "data.packing=True with task.name='sequence_classification'", "False: every example of this task has a sequence of its own", "set data.packing=False"),
    Wrong("no-label-column", CLASSIFY + "--task.label_field kind", "row 1 of data.train, '{classes}': task.label_field='kind' is not there; the columns are text, label", "an integer or a class name", "set task.label_field to the column that holds the class"),
    Wrong("class-only-in-evaluation", CLASSIFY + "--data.evaluation {tmp}/other_class.jsonl", "row 1 of data.evaluation, '{tmp}/other_class.jsonl': label='module' does not occur in the training rows", "one of class, function", "add the class to the training data"),
    Wrong("one-class", CLASSIFY + "--data.train {tmp}/other_class.jsonl", "task.label_field='label' has 1 distinct values", "between 2 and 10000 classes", "check task.label_field"),
    Wrong("no-padding-token", CLASSIFY + "--model.tokenizer {tmp}/no_padding", "no_padding' has no padding token", "texts of a batch are padded", "add it to tokenizer_config.json"),
]  # fmt: skip


@pytest.mark.parametrize("wrong", DATA_AND_MODEL, ids=lambda wrong: wrong.id)
def test_refused_before_weights_are_loaded(
    wrong: Wrong, ground: Ground, refused: Callable[..., re.Match[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.engine import process

    def too_far(*_: object) -> None:
        pytest.fail("went on to start the process group")

    monkeypatch.setattr(process, "start", too_far)
    start(wrong, ground, refused, monkeypatch)


VERBS = [
    Wrong("no-verb", "", "the following arguments are required: VERB", "usage: toolkit", "see `toolkit --help`"),
    Wrong("unknown-verb", "chekc x.json", "(did you mean 'check'?)", "usage: toolkit", "see `toolkit --help`"),
    Wrong("check-of-nothing", "check {tmp}/edted.json", "{tmp}/edted.json does not exist (did you mean 'edited.json'?)", "a DeepSpeed JSON, the Trainer's arguments or accelerate's file", "correct the path"),
    Wrong("check-of-no-json", "check {tmp}/broken.json", "{tmp}/broken.json:1 is not JSON", "a JSON object", "correct the file at that line"),
    Wrong("world-size-of-zero", "check {tmp}/edited.json --world_size 0", "--world-size: '0' is not an integer of at least 1", "usage: toolkit check", "see `toolkit check --help`"),
    Wrong("export-to-an-unset-variable", "export {tmp}/full ''", "argument out: '' is not a path: this one is empty", "usage: toolkit export", "see `toolkit export --help`"),
    Wrong("misspelt-flag-of-a-verb", "check {tmp}/edited.json --wordl-size 8", "toolkit check: unknown flag --wordl-size (did you mean --world-size?)", "usage: toolkit check", "see `toolkit check --help`"),
    Wrong("flag-of-no-verb", "export --qqq=3 {tmp}/full {tmp}/out", "toolkit export: unknown flag --qqq", "usage: toolkit export", "see `toolkit export --help`"),
    Wrong("stray-word-of-a-verb", "rules all", "toolkit rules: unexpected 'all'", "usage: toolkit rules", "see `toolkit rules --help`"),
    Wrong("gpu-for-cuda", "check {tmp}/edited.json --device gpu", "'gpu' (choose from 'cpu', 'cuda') (did you mean 'cuda'?)", "usage: toolkit check", "see `toolkit check --help`"),
    Wrong("float16-for-fp16", "export {tmp}/full {tmp}/out --dtype float16", "(did you mean 'fp16'?)", "usage: toolkit export", "see `toolkit export --help`"),
    Wrong("config-of-nothing", "config {tmp}/nowhere.py", "recipe file '{tmp}/nowhere.py' does not exist", "a Python file that defines", "check the path"),
    Wrong("config-of-no-recipe", "config {tmp}/nothing.py", "{tmp}/nothing.py defines no recipe (found NoneType)", "a module-level `recipe = Recipe(...)`", "for the form"),
    Wrong("config-of-a-syntax-error", "config {tmp}/syntax.py", "{tmp}/syntax.py, line 3: SyntaxError", "a Python file that defines", "correct the file"),
    Wrong("config-of-a-crash", "config {tmp}/crash.py", "{tmp}/crash.py, line 3: AttributeError: module 'toolkit' has no attribute 'Recipee'", "a Python file that defines", "correct the file"),
    Wrong("export-of-no-run", "export {tmp}/full {tmp}/out", "{tmp}/full has no complete checkpoint", "a run folder with checkpoints/step-*", "check the path"),
    Wrong("fetch-of-an-unknown-name", "fetch minilm", "unknown name 'minilm' (did you mean 'minilm-l6'?)", "one of smollm2-135m-instruct", "run `toolkit fetch` without a name"),
]  # fmt: skip


@pytest.mark.parametrize("wrong", VERBS, ids=lambda wrong: wrong.id)
def test_verbs(wrong: Wrong, ground: Ground, refused: Callable[..., re.Match[str]]) -> None:
    holds(refused(lambda: verbs.main(shlex.split(wrong.flags.format(**ground.names)))), wrong, ground.names)


def test_a_tracker_that_is_not_installed(ground: Ground, refused: Callable[..., re.Match[str]]) -> None:
    missing = next((name for name in ("aim", "clearml", "swanlab") if importlib.util.find_spec(name) is None), None)
    if missing is None:
        pytest.skip("every tracker is installed here")
    flags = ["--tracking.trackers", missing, "--output_dir", str(ground.tmp / "run")]
    found = refused(lambda: run.main(ground.recipe, flags))
    assert found["what"] == f"tracking.trackers='{missing}', but the package {missing} is not installed"
    assert (found["expected"], found["do"]) == (
        f"the package of {missing}",
        f"pip install {missing}, or take it out of the tracking section",
    )


def test_a_port_in_use(ground: Ground, refused: Callable[..., re.Match[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        launcher = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        for name, value in (launcher | {"MASTER_PORT": str(port)}).items():
            monkeypatch.setenv(name, value)
        found = refused(lambda: run.main(ground.recipe, ["--output_dir", str(ground.tmp / "run")]))
    assert found["what"] == f"port {port} on 127.0.0.1 is in use (Address already in use)"
    assert found["expected"] == "a free port for the processes to meet at"
    assert "pass another one: `deepspeed --master_port 29511 ...`" in found["do"]


def test_no_device(ground: Ground, refused: Callable[..., re.Match[str]]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    flags = ["--launch.device", "cuda", "--output_dir", str(ground.tmp / "run")]
    found = refused(lambda: run.main(ground.recipe, flags))
    assert found["what"].startswith("launch.device='cuda', but this process sees 0 CUDA devices and computes on cpu")
    assert found["expected"] == "at least one cuda device"
    assert found["do"] == "check CUDA_VISIBLE_DEVICES and the driver, or run with --launch.device auto"


def test_a_number_format_that_the_device_lacks(
    ground: Ground, refused: Callable[..., re.Match[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)  # as an older device says
    flags = ["--precision.dtype", "fp16", "--output_dir", str(ground.tmp / "run")]
    found = refused(lambda: run.main(ground.recipe, flags))
    assert found["what"].startswith("precision.dtype='fp16' on this ")
    assert found["expected"] == "a number format that the device computes in"
    assert found["do"] == "set precision.dtype='auto', or another one of fp32, bf16, fp16"
