"""Every recipe field, changed when a run is resumed: refused by name, or said and in effect. And contents, not names."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import images, speech, vision
from tests.tiny import byte_tokenizer, encoder_decoder, save, write_lines
from toolkit.checkpoint.durable import write_json
from toolkit.checkpoint.manifest import Manifest, folder_name
from toolkit.errors import CheckpointError
from toolkit.recipe import Recipe, Task, Tuning
from toolkit.recipe.dotted import CHOICES
from toolkit.recipe.optimizers import DEFAULTS
from toolkit.train import facts
from toolkit.train.inputs import Inputs, prepare_inputs
from toolkit.train.progress import Display
from toolkit.train.resume import Start, find_start
from toolkit.train.resume_fields import ROLES, Role, changes, flatten
from toolkit.train.run import RunOptions, _identity
from toolkit.train.run_folder import RunFolder
from toolkit.train.watch import watch_of

STEP = 2
WORDS = ("left", "right", "above", "below", "inside", "outside", "before", "after")


def rows(kind: str, count: int = 24) -> list[dict[str, Any]]:
    """Rows of each form, each with a second column of the same form under another name."""
    made: list[dict[str, Any]] = []
    for number in range(count):
        words = [f"{WORDS[number % 8]} {number}", f"{WORDS[(number + 3) % 8]} of {number} " * (1 + number % 5)]
        if kind == "chat":
            turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), words, strict=True)]
            made.append({"messages": turns, "dialogue": [turns[0], {"role": "assistant", "content": "other"}]})
        elif kind == "pairs":
            made.append({"prompt": words[0], "completion": words[1], "question": words[1], "answer": words[0]})
        elif kind == "preferences":
            answers = {"chosen": words[1], "rejected": words[0], "better": words[1] * 2, "worse": words[0] * 2}
            made.append({"prompt": words[0], **answers, "gap": number % 3, "wide": number % 2 + 1})
        elif kind == "judged":
            made.append({"prompt": words[0], "completion": words[1], "label": number % 2 == 0})
        elif kind == "text":
            made.append({"text": words[1], "body": words[0]})
        elif kind == "pictured":
            seen = [f"data:image/png;base64,{base64.b64encode(vision.picture(each)).decode()}" for each in range(4)]
            made.append(
                {"text": words[0], "images": seen[:1], "pictures": seen[1:2], "picture": seen[2], "snap": seen[3]}
            )
        elif kind == "tagged":
            cut, marks = words[1].split(), ["B-X", "I-X", "O"] * 6
            made.append(
                {"words": cut, "labels": marks[: len(cut)], "body": cut[::-1], "marks": marks[1 : len(cut) + 1]}
            )
        elif kind == "asked":
            answers = {"text": [WORDS[(number + 3) % 8]], "answer_start": [0]}
            other = {"text": ["of"], "answer_start": [words[1].find("of")]}
            made.append(
                {
                    "question": words[0],
                    "ask": "What?",
                    "context": words[1],
                    "page": words[1] + "!",
                    "answers": answers,
                    "others": other,
                }
            )
        elif kind == "written":
            pair = {"en": words[1], "de": words[0], "fr": words[1] + words[0]}
            made.append(
                {
                    "source": words[1],
                    "target": words[0],
                    "body": words[0],
                    "title": words[1],
                    "translation": pair,
                    "pair": dict(pair, en="other"),
                }
            )
        elif kind == "texts":
            made.append(
                {
                    "anchor": words[0],
                    "positive": words[1],
                    "other": words[1] + words[0],
                    "score": number % 3 / 2,
                    "grade": number % 5 / 4,
                }
            )
        elif kind == "flags":
            made.append({"text": words[1], "left": number % 2, "right": number % 3 // 2})
        else:
            made.append({"text": words[1], "body": words[0], "label": WORDS[number % 2], "other": number % 3})
    return made


@dataclass
class Ground:
    """The stored runs and what changed recipes point to."""

    folder: Path
    models: dict[str, str]
    prepared: dict[str, Inputs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in (
            "chat",
            "pairs",
            "text",
            "classes",
            "tagged",
            "pictured",
            "asked",
            "flags",
            "written",
            "texts",
            "preferences",
            "judged",
        ):
            write_lines(self.folder / f"{kind}.jsonl", rows(kind))
            write_lines(self.folder / f"{kind}-copy.jsonl", rows(kind))
            write_lines(self.folder / f"{kind}-more.jsonl", rows(kind, 28))
        pictures = images.folder(self.folder / "pictures", train=24, test=0)
        named = [
            {"image": str(file), "label": file.parent.name, "photo": str(file), "kind": str(number % 2)}
            for number, file in enumerate(sorted(pictures.glob("*/*/*.png")))
        ]
        write_lines(self.folder / "images.jsonl", named)
        speech.recordings(self.folder / "heard", other=True)
        (self.folder / "splits").mkdir()
        for split, count in (("train", 16), ("test", 8), ("validation", 9)):
            write_lines(self.folder / "splits" / f"{split}.jsonl", rows("text", count))

    def recipe(self, base: str, changed: dict[str, Any]) -> Recipe:
        """One of the bases below, with the dotted fields `changed`; {tmp} and {MODEL} in strings are filled in."""
        values: dict[str, Any] = {}
        for name, value in (COMMON | BASES[base] | changed).items():
            section, _, last = name.rpartition(".")
            target = values.setdefault(section, {}) if section else values
            target[last] = value.format(tmp=self.folder, **self.models) if isinstance(value, str) else value
        return Recipe(**values)

    def inputs(self, recipe: Recipe) -> Inputs:
        key = repr((recipe.model, recipe.data, recipe.task, recipe.batch, recipe.seed, recipe.steps, recipe.epochs))
        if key not in self.prepared:
            self.prepared[key] = prepare_inputs(recipe, 0, 1, Display(is_main=False))
        return self.prepared[key]

    def store(self, recipe: Recipe, folder: Path) -> RunFolder:
        """A run of `recipe` at step 2, as it saves itself, without its numbers."""
        inputs = self.inputs(recipe)
        watch = watch_of(recipe, inputs)
        watch.observe(2.77, STEP)
        found = facts.gather(recipe, inputs)
        run = {
            **_identity(recipe, RunOptions("test", folder), Start(found=found)),
            "data": {"position": {"step": STEP}, "owner": found["examples"]},
            "watch": watch.state(),
        }
        checkpoint = folder / "checkpoints" / folder_name(STEP)
        checkpoint.mkdir(parents=True)
        write_json(checkpoint / "manifest.json", Manifest(STEP, 1, {}, [], run).to_json())
        return RunFolder(folder)

    def resume(self, recipe: Recipe, run: RunFolder, *, changed_data: bool = False) -> Start:
        inputs = self.inputs(recipe)
        found = facts.gather(recipe, inputs)
        return find_start(recipe, run, "auto", found, watch_of(recipe, inputs), changed_data=changed_data)


COMMON: dict[str, Any] = {
    "model.path": "{llama}", "batch.global_size": 2, "batch.sequence_length": 24, "data.evaluation_examples": 4,
    "evaluation.every_steps": 1, "steps": 4,
}  # fmt: skip
BASES: dict[str, dict[str, Any]] = {
    "chat": {"data.train": "{tmp}/chat.jsonl"},
    "pairs": {"data.train": "{tmp}/pairs.jsonl"},
    "text": {"data.train": "{tmp}/text.jsonl", "data.packing": False, "data.shuffle": False},
    "apart": {"data.train": "{tmp}/splits", "data.evaluation": "{tmp}/splits", "data.evaluation_examples": 0},
    "stream": {
        "data.train": "{tmp}/text.jsonl", "data.streaming": True, "data.evaluation": "{tmp}/text.jsonl",
        "data.evaluation_examples": 0,
    },
    "classes": {
        "data.train": "{tmp}/classes.jsonl", "data.packing": False, "task.name": "sequence_classification",
        "model.path": "{bert}",
    },
    **{
        kind: {"data.train": "{tmp}/preferences.jsonl", "batch.sequence_length": 160, "task.name": kind}
        for kind in ("dpo", "simpo", "reward_model")
    },
    "kto": {"data.train": "{tmp}/judged.jsonl", "batch.sequence_length": 160, "task.name": "kto"},
    "masked": {
        "data.train": "{tmp}/text.jsonl", "data.packing": False, "task.name": "masked_lm", "model.path": "{bert}",
    },
    "tagged": {
        "data.train": "{tmp}/tagged.jsonl", "data.packing": False, "task.name": "token_classification",
        "model.path": "{bert}",
    },
    "pictured": {
        "data.train": "{tmp}/pictured.jsonl", "data.packing": False, "task.name": "image_text_to_text",
        "model.path": "{llava}", "batch.sequence_length": 64,
    },
    "asked": {
        "data.train": "{tmp}/asked.jsonl", "data.packing": False, "task.name": "question_answering",
        "model.path": "{bert}", "data.overlong": "split", "task.doc_stride": 2, "batch.sequence_length": 20,
    },
    "flags": {
        "data.train": "{tmp}/flags.jsonl", "data.packing": False, "task.name": "sequence_classification",
        "model.path": "{bert}", "task.label_fields": ("left", "right"),
    },
    "written": {
        "data.train": "{tmp}/written.jsonl", "data.packing": False, "task.name": "seq2seq", "model.path": "{t5}",
    },
    "texts": {
        "data.train": "{tmp}/texts.jsonl", "data.packing": False, "task.name": "sentence_embedding",
        "model.path": "{bert}",
    },
    "images": {
        "data.train": "{tmp}/images.jsonl", "data.packing": False, "task.name": "image_classification",
        "model.path": "{resnet}", "batch.sequence_length": 512,
    },
    "drawn": {
        "data.train": "{tmp}/images.jsonl", "data.packing": False, "task.name": "image_classification",
        "batch.sequence_length": 512, "task.image_size": 16, "model.path": None, "model.architecture": "resnet",
        "model.weights": "random", "model.config": images.CONFIGS["resnet"],
    },
    "own": {
        "data.train": "own", "data.packing": False, "task.name": "custom", "model.path": None,
        "batch.sequence_length": 512, "task.target": "toolkit.examples.residues:MaskedResidues",
    },
    "heard": {
        "data.train": "{tmp}/heard/rows.jsonl", "data.packing": False, "data.overlong": "drop",
        "task.name": "speech_seq2seq", "model.path": "{whisper}", "task.max_duration_s": 1.0, "task.target_length": 20,
        "task.language": "english", "batch.sequence_length": 512,
    },
    "spelt": {
        "data.train": "{tmp}/heard/rows.jsonl", "data.packing": False, "data.overlong": "drop", "task.name": "speech_ctc",
        "model.path": "{wav2vec2}", "batch.sequence_length": 512,
    },
    "scratch": {
        "data.train": "{tmp}/chat.jsonl", "model.path": None, "model.architecture": "llama", "model.weights": "random",
        "model.tokenizer": "{llama}", "model.config": {"num_hidden_layers": 1, "hidden_size": 32, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 32},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A field that is changed, on which run, and what must come of it."""

    name: str
    now: Any
    right: str
    """"refused": an error that names it; "said": a line with both values; "watch": besides, the best starts anew;
    "same": neither, since it changes nothing about the model or what is kept of it."""
    base: str = "chat"
    before: dict[str, Any] = field(default_factory=dict)
    """Other fields of the run, so that the field can act."""
    also: dict[str, Any] = field(default_factory=dict)
    """What must change with it."""


refused, said = partial(Case, right="refused"), partial(Case, right="said")
BIG = {"num_hidden_layers": 1, "hidden_size": 32, "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}  # fmt: skip
HELD_OUT = {"data.evaluation": "{tmp}/chat.jsonl", "data.evaluation_examples": 0}
LORA = {"tuning.name": "lora"}
LANGUAGES = {"task.source_language": "en", "task.target_language": "de"}
SCORED = {"task.objective": "cosent", "task.score_field": "score"}
CASES = [
    said("model.path", "{llama_copy}"),
    refused("model.path", "{llama_other}"),
    refused("model.path", "{llama_wider}"),
    refused("model.architecture", "mistral", base="scratch"),
    refused("model.weights", "random"),
    refused("model.config", BIG, base="scratch"),
    refused("model.config", {"rms_norm_eps": 0.125}),
    said("model.tokenizer", "{llama_copy}"),
    refused("model.tokenizer", "{llama_template}"),
    refused("model.tokenizer", "{llama_special}"),
    said("model.dropout", 0.125),
    said("model.attention", "eager"),
    said("model.batch_norm", "frozen", base="images"),
    said("model.activation_checkpointing", True),
    said("model.activation_offload", True, before={"model.activation_checkpointing": True}),
    said("model.mlp_tiles", 2),
    said("model.kernels", "none"),
    said("model.compile", True),
    said("data.train", "{tmp}/chat-copy.jsonl"),
    refused("data.train", "{tmp}/chat-more.jsonl"),
    said("data.train", "{tmp}/text-copy.jsonl", base="stream"),
    refused("data.train", "{tmp}/text-more.jsonl", base="stream"),
    Case("data.evaluation", "{tmp}/chat-more.jsonl", "watch", before=HELD_OUT),
    said("data.evaluation", "{tmp}/chat-copy.jsonl", before=HELD_OUT),
    refused("data.evaluation_examples", 6),
    refused("data.split", "validation", base="apart"),
    Case("data.evaluation_split", "validation", "watch", base="apart"),
    said("data.subset", "other"),
    refused("data.max_examples", 20),
    said("data.max_examples", 24),
    refused("data.max_examples", 20, base="stream"),
    refused("data.overlong", "drop", base="stream"),
    refused("data.streaming", False, base="stream"),
    refused("data.shuffle", True, base="text"),
    refused("data.packing", False),
    refused("data.group_by_length", True, base="classes"),
    refused("data.overlong", "drop", base="text"),
    refused("task.messages_field", "dialogue"),
    refused("task.prompt_field", "question", base="pairs"),
    refused("task.completion_field", "answer", base="pairs"),
    refused("task.text_field", "body", base="text"),
    refused("task.label_field", "other", base="classes"),
    refused("task.chosen_field", "better", base="dpo"),
    refused("task.rejected_field", "worse", base="simpo"),
    refused("task.margin_field", "wide", base="reward_model", before={"task.margin_field": "gap"}),
    said("task.beta", 0.25, base="dpo"),
    said("task.loss", "hinge", base="dpo"),
    said("task.gamma", 0.5, base="simpo"),
    said("task.centering", 0.125, base="reward_model"),
    said("task.desirable_weight", 1.5, base="kto"),
    said("task.undesirable_weight", 1.5, base="kto"),
    refused("task.label_fields", ["right", "left"], base="flags"),
    refused("task.second_text_field", "body", base="classes"),
    said("task.problem_type", "single_label_classification", base="classes"),
    refused("task.mask_probability", 0.25, base="masked"),
    refused("task.mask_share", 0.5, base="masked"),
    refused("task.random_share", 0.0, base="masked"),
    refused("task.whole_word", True, base="masked"),
    refused("task.words_field", "body", base="tagged"),
    refused("task.labels_field", "marks", base="tagged"),
    said("task.scheme", "tags", base="tagged"),
    refused("task.label_all_tokens", True, base="tagged"),
    refused("task.question_field", "ask", base="asked"),
    refused("task.context_field", "page", base="asked"),
    refused("task.answers_field", "others", base="asked"),
    refused("task.images_field", "pictures", base="pictured"),
    refused("task.image_field", "picture", base="pictured", before={"task.images_field": "none", "task.image_field": "snap"}),
    refused("task.instruction", "What is this?", base="pictured"),
    refused("task.freeze_vision_tower", False, base="pictured"),
    refused("task.freeze_projector", True, base="pictured"),
    said("task.max_pixels", 1_000_000, base="pictured"),
    refused("task.doc_stride", 5, base="asked"),
    said("task.unanswerable", True, base="asked"),
    said("task.null_threshold", 0.5, base="asked", before={"task.unanswerable": True}),
    said("task.max_answer_tokens", 3, base="asked"),
    refused("task.source_field", "body", base="written"),
    refused("task.target_field", "title", base="written"),
    refused("task.source_language", "fr", base="written", before=LANGUAGES),
    refused("task.target_language", "fr", base="written", before=LANGUAGES),
    refused("task.translation_field", "pair", base="written", before=LANGUAGES),
    refused("task.source_prefix", "write: ", base="written"),
    refused("task.target_length", 2, base="written"),
    said("task.scores", ["chrf"], base="written"),
    said("task.num_beams", 2, base="written"),
    said("task.max_new_tokens", 3, base="written"),
    refused("task.anchor_field", "other", base="texts"),
    refused("task.positive_field", "other", base="texts"),
    refused("task.negative_field", "other", base="texts"),
    refused("task.score_field", "grade", base="texts", before=SCORED),
    refused("task.objective", "mse", base="texts", before=SCORED),
    refused("task.anchor_prefix", "query: ", base="texts"),
    refused("task.positive_prefix", "passage: ", base="texts"),
    refused("task.pooling", "cls", base="texts"),
    refused("task.normalize", False, base="texts"),
    said("task.temperature", 0.5, base="texts"),
    refused("task.target", "toolkit.examples.two_tower:TwoTower", base="own"),
    refused("task.arguments", {"width": 32}, base="own"),
    refused("task.audio_field", "other", base="heard"),
    refused("task.language", "de", base="heard"),
    refused("task.task", "translate", base="heard"),
    refused("task.max_duration_s", 0.4, base="heard"),
    said("task.mask_time_prob", 0.25, base="heard"),
    said("task.mask_time_length", 4, base="heard", before={"task.mask_time_prob": 0.25}),
    said("task.mask_feature_prob", 0.25, base="heard"),
    said("task.mask_feature_length", 4, base="heard", before={"task.mask_feature_prob": 0.25}),
    said("task.normalizer", "none", base="heard"),
    refused("task.text_prefix", " ", base="heard"),
    refused("task.freeze_encoder", True, base="heard"),
    said("task.text_case", "lower", base="spelt"),
    refused("task.chars_to_ignore", "a", base="spelt"),
    refused("task.freeze_feature_encoder", False, base="spelt"),
    Case("data.prefetch", 0, "same"),
    Case("data.workers", 2, "same"),
    said("data.unreadable", "skip", base="images"),
    refused("tuning.name", "lora"),
    refused("tuning.rank", 8, before=LORA),
    refused("tuning.alpha", 8.0, before=LORA),
    said("tuning.dropout", 0.25, before=LORA),
    refused("tuning.target_modules", ["q_proj"], before=LORA),
    refused("tuning.use_rslora", True, before=LORA),
    refused("tuning.use_dora", True, before=LORA),
    refused("tuning.modules_to_save", ["norm"], before=LORA),
    refused("tuning.initialisation", "gaussian", before=LORA),
    refused("task.name", "sequence_classification", base="text", also={"model.path": "{bert}", "data.train": "{tmp}/classes.jsonl"}),
    refused("task.train_on", "all"),
    said("task.label_smoothing", 0.125),
    said("task.neftune_alpha", 2.0),
    said("task.sample_prompt", "what?"),
    said("task.sample_tokens", 3, before={"task.sample_prompt": "what?"}),
    refused("batch.global_size", 4),
    said("batch.micro_size", 2),
    refused("batch.sequence_length", 32),
    said("optimizer.ema_decay", 0.5),
    said("task.image_field", "photo", base="images"),
    refused("task.label_field", "kind", base="images"),
    *(
        refused(f"task.{name}", value, base="images")
        for name, value in {
            "image_size": 24, "image_mean": (0.1, 0.2, 0.3), "image_std": (0.1, 0.2, 0.3),
        }.items()
    ),
    *(
        said(f"task.{name}", value, base="images")
        for name, value in {
            "random_crop": "padded", "crop_scale": (0.5, 1.0), "crop_ratio": (0.5, 2.0), "crop_padding": 2,
            "horizontal_flip": 0.0, "color_jitter": 0.5, "rand_augment": 9, "random_erasing": 0.5, "mixup_alpha": 0.5,
            "cutmix_alpha": 0.5, "channels_last": True, "max_pixels": 10_000,
        }.items()
    ),
    refused("task.center_crop", 0.5, base="drawn"),
    said("task.rand_augment_operations", 3, base="images", before={"task.rand_augment": 9}),
    refused("optimizer.type", "adam"),
    said("optimizer.learning_rate", 1e-3),
    said("optimizer.weight_decay", 0.5),
    said("optimizer.max_grad_norm", 0.5),
    said("optimizer.betas", [0.5, 0.75]),
    said("optimizer.eps", 0.25),
    refused("optimizer.momentum", 0.5, before={"optimizer.type": "rmsprop"}),
    said("optimizer.nesterov", True, before={"optimizer.type": "sgd_momentum"}),
    said("optimizer.dampening", 0.5, before={"optimizer.type": "sgd_momentum"}),
    said("optimizer.alpha", 0.5, before={"optimizer.type": "rmsprop"}),
    refused("optimizer.centered", True, before={"optimizer.type": "rmsprop"}),
    said("optimizer.lr_decay", 0.5, before={"optimizer.type": "adagrad"}),
    refused("optimizer.initial_accumulator_value", 0.5, before={"optimizer.type": "adagrad"}),
    said("optimizer.adam_learning_rate", 0.5, before={"optimizer.type": "muon"}),
    said("optimizer.implementation", "torch"),
    said("schedule.type", "cosine"),
    said("schedule.warmup_steps", 1),
    said("schedule.min_ratio", 0.25),
    said("schedule.decay_steps", 1, before={"schedule.type": "warmup_stable_decay"}),
    said("schedule.power", 2.0, before={"schedule.type": "polynomial"}),
    said("schedule.gamma", 0.5, before={"schedule.type": "exponential"}),
    said("schedule.step_size", 2, before={"schedule.type": "step", "schedule.step_size": 1}),
    said("schedule.milestones", [2], before={"schedule.type": "multi_step", "schedule.milestones": (1,)}),
    said("schedule.peak_fraction", 0.5, before={"schedule.type": "one_cycle"}),
    said("schedule.start_ratio", 0.5, before={"schedule.type": "one_cycle"}),
    said("schedule.patience", 1, before={"schedule.type": "reduce_on_plateau", "schedule.patience": 0}),
    said("precision.dtype", "fp32"),
    said("precision.accumulation_dtype", "bf16", before={"precision.dtype": "bf16"}),
    said("precision.communication_dtype", "bf16"),
    said("precision.tf32", True, before={"precision.dtype": "fp32"}),
    said("precision.master_dtype", "bf16", before={"precision.dtype": "bf16"}),
    said("precision.state_dtype", "bf16", before={"precision.dtype": "bf16", "precision.master_dtype": "bf16"}),
    said("precision.initial_scale_power", 8, before={"precision.dtype": "fp16"}),
    said("precision.loss_scale_window", 8, before={"precision.dtype": "fp16"}),
    said("precision.hysteresis", 1, before={"precision.dtype": "fp16"}),
    said("precision.min_loss_scale", 2.0, before={"precision.dtype": "fp16"}),
    said("parallel.zero_stage", 1),
    said("parallel.offload_optimizer", "cpu"),
    said("parallel.offload_ratio", 0.5, before={"parallel.zero_stage": 3, "parallel.offload_optimizer": "cpu"}),
    said("parallel.offload_param", "cpu", before={"parallel.zero_stage": 3}),
    said("parallel.nvme_path", "/b", before={"parallel.zero_stage": 3, "parallel.offload_param": "nvme", "parallel.nvme_path": "/a"}),
    said("parallel.reduce_bucket_size", 1000),
    said("parallel.overlap_comm", True),
    said("parallel.param_persistence_threshold", 10, before={"parallel.zero_stage": 3}),
    said("parallel.pipeline", 2, before={"parallel.zero_stage": 1}),
    said("parallel.tensor", 2),
    said("parallel.sequence", 2),
    said("checkpoint.every_steps", 1),
    said("checkpoint.keep", 3),
    said("checkpoint.keep_best", True),
    said("checkpoint.export", False),
    said("checkpoint.export_dtype", "fp32"),
    said("checkpoint.merge", True, before=LORA),
    said("evaluation.every_steps", 2),
    Case("evaluation.max_sequences", 1, "watch"),
    Case("evaluation.metric", "perplexity", "watch", before={"checkpoint.keep_best": True}),
    said("evaluation.early_stopping_patience", 2),
    said("tracking.tensorboard", False),
    said("tracking.trackers", ["aim"]),
    said("tracking.project", "other", before={"tracking.trackers": ["aim"]}),
    *(Case(name, now, "same") for name, now in {"launch.devices": 1, "launch.hosts": 2, "launch.device": "cpu",
      "launch.timeout_s": 60, "launch.host_timeout_s": 60, "launch.memory_check": "off", "parallel.auto": True,
      "batch.auto_micro_size": True, "note": "another"}.items()),
    said("steps", 8),
    said("epochs", 1.0, also={"steps": None}),
    refused("seed", 7),
]  # fmt: skip


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path, tiny_bert_dir: Path) -> Any:
    folder = tmp_path_factory.mktemp("resumed")
    models = {"llama": tiny_llama_dir, "bert": tiny_bert_dir}
    tokenizer = byte_tokenizer()
    models["resnet"] = images.checkpoint("resnet", folder / "resnet")
    models["llava"] = vision.checkpoint("llava", folder / "llava")
    models["t5"] = save(encoder_decoder("t5", tokenizer), tokenizer, folder / "t5")
    models["whisper"] = speech.whisper(folder / "whisper", multilingual=True)
    models["wav2vec2"] = speech.wav2vec2(folder / "wav2vec2")
    for name in ("copy", "other", "wider", "template", "special"):
        models[f"llama_{name}"] = shutil.copytree(tiny_llama_dir, folder / f"llama_{name}")
    _edit_weights(models["llama_other"])
    _edit_json(
        models["llama_wider"] / "config.json", lambda config: config | {"rope_theta": 5000.0, "rms_norm_eps": 0.5}
    )
    (models["llama_template"] / "chat_template.jinja").write_text(
        "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}<|im_end|>{% endfor %}"
    )
    _edit_json(
        models["llama_special"] / "tokenizer_config.json", lambda config: config | {"unk_token": "<|endoftext|>"}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOOLKIT_CACHE", str(folder / "cache"))
        yield Ground(folder, {name: str(path) for name, path in models.items()})


def _edit_json(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def _edit_weights(model: Path) -> None:
    """Other numbers, as training leaves them: same names, same sizes."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"})


def test_every_field_has_a_role_and_a_case(ground: Ground) -> None:
    """Made from the recipe itself: a field that nobody has thought about fails here."""
    fields = set(flatten(ground.recipe("chat", {})))
    plain = {name for name in fields if name.partition(".")[0] not in CHOICES}
    assert set(ROLES) == plain | {f"{section}.name" for section in CHOICES}
    of_tasks = {f"task.{field}" for kind in Task.kinds.values() for field in kind.model_fields}
    assert {case.name for case in CASES} == plain | of_tasks | {
        f"tuning.{field}" for kind in Tuning.kinds.values() for field in kind.model_fields
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.right}-{case.base}")
def test_a_changed_field_is_refused_or_said(case: Case, ground: Ground, tmp_path: Path) -> None:
    before = ground.recipe(case.base, case.before)
    now = ground.recipe(case.base, case.before | case.also | {case.name: case.now})
    old, new = flatten(before)[case.name], flatten(now)[case.name]
    assert old != new, "the case changes nothing"
    if old is None and case.name.startswith("optimizer."):
        old = json.loads(json.dumps(DEFAULTS[before.optimizer.type][case.name.removeprefix("optimizer.")]))
    run = ground.store(before, tmp_path)
    if case.right == "refused":
        with pytest.raises(CheckpointError) as refusal:
            ground.resume(now, run)
        assert f"{case.name}={new!r} (the run has {old!r})" in refusal.value.what
        assert "take the flags back, or start a new run in another --output_dir" in refusal.value.do
        return
    start = ground.resume(now, run)
    assert start.step == STEP
    spoken = "\n".join(start.notes)
    if case.right == "same":
        assert spoken == "" and start.history == []
        return
    assert f"changed after step {STEP}: " in spoken
    assert f"{case.name} {old!r} -> {new!r}" in spoken
    assert start.history[-1]["changed"][case.name] == [old, new]
    assert start.watch is not None
    if case.right == "watch":
        assert "changed: best so far was loss 2.77 at step 2; " in spoken and "starts anew" in spoken
        assert start.watch["best"] is None and start.forgets_metric
    else:
        assert start.watch["best"] == 2.77 and not start.forgets_metric


def test_nothing_changed(ground: Ground, tmp_path: Path) -> None:
    for base in BASES:
        recipe = ground.recipe(base, {})
        start = ground.resume(recipe, ground.store(recipe, tmp_path / base))
        assert (start.step, start.notes, start.data) == (STEP, (), {"step": STEP})


def test_a_default_written_out_is_no_change(ground: Ground) -> None:
    plain = ground.recipe("chat", {"optimizer.type": "rmsprop"})
    written = ground.recipe(
        "chat", {"optimizer.type": "rmsprop", "optimizer.momentum": 0.0, "optimizer.centered": False}
    )
    assert changes(flatten(plain), written) == []


def test_the_same_path_with_other_content(ground: Ground, tmp_path: Path) -> None:
    """The file has grown: refused, named; with --resume_changed_data it goes on and says so."""
    file = write_lines(tmp_path / "data.jsonl", rows("chat"))
    recipe = ground.recipe("chat", {"data.train": str(file)})
    run = ground.store(recipe, tmp_path / "run")
    write_lines(file, rows("chat", 60))
    ground.prepared.clear()
    with pytest.raises(CheckpointError) as refusal:
        ground.resume(recipe, run)
    assert "the training examples have other content: " in refusal.value.what
    assert "sequences (the run has " in refusal.value.what
    assert "pass --resume_changed_data to go on with the new data from the next step on" in refusal.value.do
    start = ground.resume(recipe, run, changed_data=True)
    assert start.step == STEP and start.data is None
    assert "the training examples have other content" in start.notes[0]
    assert f"steps from {STEP + 1} on are drawn from what is there now" in start.notes[0]


def test_the_same_stream_with_other_content(ground: Ground, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "data.jsonl", rows("text"))
    recipe = ground.recipe("stream", {"data.train": str(file)})
    run = ground.store(recipe, tmp_path / "run")
    write_lines(file, list(reversed(rows("text"))))
    ground.prepared.clear()
    with pytest.raises(CheckpointError, match="the training examples have other content"):
        ground.resume(recipe, run)
    assert ground.resume(recipe, run, changed_data=True).data is None


def test_changed_classes_are_named_and_not_to_be_overridden(ground: Ground, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "data.jsonl", rows("classes"))
    recipe = ground.recipe("classes", {"data.train": str(file)})
    run = ground.store(recipe, tmp_path / "run")
    write_lines(file, [row | {"label": f"{row['label']}s"} for row in rows("classes")])
    ground.prepared.clear()
    for changed_data in (False, True):
        with pytest.raises(CheckpointError) as refusal:
            ground.resume(recipe, run, changed_data=changed_data)
        assert "the classes: lefts, rights (the run has left, right)" in refusal.value.what
        assert "--resume_changed_data" not in refusal.value.do


def test_the_override_reaches_no_further_than_the_data(ground: Ground, tmp_path: Path) -> None:
    run = ground.store(ground.recipe("chat", {}), tmp_path)
    ground.resume(ground.recipe("chat", {"data.shuffle": False}), run, changed_data=True)
    for name, value in {"seed": 7, "batch.global_size": 4, "model.path": "{llama_other}"}.items():
        with pytest.raises(CheckpointError) as refusal:
            ground.resume(ground.recipe("chat", {name: value}), run, changed_data=True)
        assert name in refusal.value.what and "--resume_changed_data" not in refusal.value.do


def test_a_best_whose_checkpoint_is_gone_starts_anew(ground: Ground, tmp_path: Path) -> None:
    """The run kept none; keep_best from now on must not wait for a number that no checkpoint has."""
    run = ground.store(ground.recipe("chat", {}), tmp_path)
    checkpoint = run.checkpoints / folder_name(STEP)
    checkpoint.rename(run.checkpoints / folder_name(STEP + 1))
    start = ground.resume(ground.recipe("chat", {"checkpoint.keep_best": True}), run)
    assert start.watch is not None and start.watch["best"] is None and not start.forgets_metric
    assert "best so far was loss 2.77 at step 2, whose checkpoint was not kept" in start.notes[-1]


def test_roles_of_data_fields_follow_the_seam() -> None:
    """Names of places are compared by what is found there, never by themselves."""
    assert {name for name, role in ROLES.items() if role is Role.CONTENT} >= {
        "data.train",
        "model.path",
        "model.tokenizer",
    }
