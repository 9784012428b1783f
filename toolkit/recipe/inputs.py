"""What is trained on what: the model, the data, the batch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from toolkit.errors import RecipeError
from toolkit.recipe.location import Location
from toolkit.recipe.numbers import NonNegative, Positive, Rate, Scalar, json_text
from toolkit.recipe.section import Section


class Model(Section):
    """Which network, where its weights come from, and how it is run."""

    path: Location | None = None
    """Checkpoint: a Hugging Face directory, a name that `toolkit fetch` knows, or a hub name. None: `architecture` says what to build, or the task brings a module of its own."""
    architecture: str | None = None
    """Hugging Face model_type built from `config` when there is no `path`, e.g. "llama"."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """"pretrained" reads the weights at `path`; "random" builds the same architecture from scratch with the run's seed."""
    config: dict[str, Scalar] = Field(default_factory=dict)
    """Fields of the model's own config to override, e.g. {"num_hidden_layers": 4}; what the architecture derives from them follows. A list or an object is kept as JSON text, the form it has on the command line. With pretrained weights only fields that change no weight's shape. A mixture of experts: output_router_logits True trains router_aux_loss_coef x its routers' balancing loss too, of each micro-batch by its share of the targets."""
    tokenizer: Location | None = None
    """Where the tokenizer is, and what else a task reads its rows with (an image processor, a feature extractor); None: the same place as `path`."""
    dropout: Rate | None = None
    """Set every dropout probability of the architecture to this; None leaves the checkpoint's own."""
    attention: Literal["auto", "varlen", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "auto"
    """How attention is computed. "varlen": each packed document, or padded row, by itself and without a mask: on CUDA in fp16 and bf16 all of them in one call of torch's variable-length flash kernel (torch 2.10 or later; causal, sliding windows, grouped heads), elsewhere one after the other. The others are transformers': "sdpa" and "eager" with a mask of tokens x tokens, "flash_attention_2" and "flash_attention_3" with packages of their own. "auto": "varlen" for packed documents, and for padded rows where the kernel computes, if a start-up probe finds the same hidden states; else "sdpa"; "eager" for architectures that have no other."""
    batch_norm: Literal["micro_batch", "synchronised", "frozen"] = "micro_batch"
    """How batch norms compute in training, where the architecture has any. "micro_batch": each micro-batch by its own mean and variance, so that the curve depends on micro_size and not on the number of ranks; "synchronised": the micro-batches that all ranks compute at once together, for micro-batches too small by themselves; "frozen": by the checkpoint's running statistics, which stay. Running statistics follow the mean over the global batch, once per step; beside adapters they are frozen."""
    kernels: Literal["auto", "liger", "none"] = "auto"
    """Fused RMSNorm, rotary embedding and SwiGLU/GeGLU of liger-kernel, compared with the model's own at start. CUDA only. "auto" takes them where liger-kernel is installed (pip install 'toolkit[liger]'), knows the architecture and agrees, and `compile` does not write kernels of its own."""
    compile: bool = False
    """Compile each layer with torch.compile in training: fewer and larger kernels, for some seconds at the first step (on a CPU half a minute and more, and a C++ compiler). Dropout draws other masks than without. Evaluation and generation run uncompiled."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    activation_offload: bool = False
    """Keep what activation_checkpointing keeps, each layer's input, in host memory: layers x tokens x width less on the device, for two copies per step that run beside the computation. On a CPU it changes nothing."""
    mlp_tiles: Positive = 1
    """Compute each layer's MLP in this many parts of the sequence, one after the other, and again in the backward pass: its wide activations exist for one part at a time. 1: all at once."""

    @field_validator("config", mode="before")
    @classmethod
    def _json_text(cls, fields: object) -> object:
        return json_text(fields)

    @model_validator(mode="after")
    def _has_a_source(self) -> Model:
        if self.path is not None and self.architecture is not None:
            raise self.two_sources()
        if self.architecture is not None and self.weights != "random":
            raise RecipeError(
                f"model.architecture={self.architecture!r} with weights={self.weights!r}",
                expected='weights="random", since no checkpoint provides them',
                do='set model.weights="random"',
            )
        return self

    def two_sources(self) -> RecipeError:
        """The error for a model of two sources, or, where the task brings none, of no source."""
        return RecipeError(
            f"model.path={self.path!r} and model.architecture={self.architecture!r}",
            expected="exactly one of the two",
            do="give model.path for a checkpoint, or model.architecture with model.config to build from scratch",
        )

    @property
    def is_new(self) -> bool:
        """Whether no weights are read: all are drawn with the run's seed."""
        return self.weights == "random" or self.path is None

    @model_validator(mode="after")
    def _kernels_from_one_source(self) -> Model:
        if self.kernels == "liger" and self.compile:
            raise RecipeError(
                "model.kernels='liger' with model.compile=True",
                expected="one of the two: torch.compile fuses the same operations, and more around them",
                do="set model.kernels='auto', or model.compile=False",
            )
        return self

    @model_validator(mode="after")
    def _offload_has_something_to_offload(self) -> Model:
        if self.activation_offload and not self.activation_checkpointing:
            raise RecipeError(
                "model.activation_offload=True with model.activation_checkpointing=False",
                expected="activation_checkpointing=True: what is moved to the host is what it keeps of each layer",
                do="set model.activation_checkpointing=True, or model.activation_offload=False",
            )
        return self


class Data(Section):
    """Where examples come from and how they become batches."""

    train: Location
    """A .jsonl/.json/.csv/.tsv/.parquet/.txt file, all but Parquet also compressed (.gz, .zst, .bz2, .xz, .lz4), a directory or a pattern of them, a directory written by `save_to_disk`, a name that `toolkit fetch` knows, or a hub name; "own": the rows of a task.target. Several with commas between them, each with a weight: "a.jsonl:2,b.parquet:0.5" passes twice through a.jsonl in every epoch, and through half of b.parquet's sequences, none twice, drawn anew for each epoch by seed; without one a weight is 1, and 1.5 is a whole pass and half of one. Sources are packed apart; the order depends on seed and step alone. A file with ":" or "," in its name is taken as it is. In CSV every cell is the text that is written, an empty one (with quotes or without) the empty text."""
    evaluation: Location | None = None
    """Held-out examples, same kinds of source ("own": rows(evaluation_split) of a task.target), several without weights. None: `evaluation_examples` are split off `train`."""
    evaluation_examples: NonNegative = 0
    """Examples split off `train` when `evaluation` is None, drawn by seed, or the last ones when `shuffle` is False, of several sources from each by its share of the rows; 0: no evaluation."""
    split: str = "train"
    """Split to read from `train` where it has several: by the names of files and folders in a directory, or by its own."""
    evaluation_split: str = "test"
    """Split to read from `evaluation` where it has several."""
    subset: str | None = None
    """Configuration name of hub data sets, in `train` and `evaluation`."""
    max_examples: Positive | None = None
    """Use only the first N examples of `train`, of each of several sources, before shuffling; those in `evaluation` are all used."""
    streaming: bool = False
    """Read `train`, one source, as a stream: nothing is prepared in advance, the length of the run must be given in steps."""
    shuffle: bool = True
    """Reorder examples (by seed and epoch; never by world size): all of them, or those of each window of 1,024 rows when `streaming`."""
    group_by_length: bool = False
    """Let the sequences of a step have about the same length, so that less is padding: shuffled by seed and epoch, those of 50 steps at a time (at most a quarter of an epoch) are sorted, and the steps shuffled. What comes when depends on seed, epoch and lengths, never on the world size."""
    packing: bool = True
    """Fill each sequence with several examples; attention and positions stay inside each example. Tasks that cannot pack ignore nothing: they refuse."""
    overlong: Literal["error", "truncate", "drop", "split"] = "truncate"
    """What to do with an example longer than batch.sequence_length; "split" cuts it into several: plain text, words with their classes, the context of a question (in windows)."""
    unreadable: Literal["error", "skip"] = "error"
    """What to do with an image or a recording that is missing, empty, damaged or too large: refuse, or leave its example out, and count it."""
    prefetch: NonNegative = 4
    """Micro-batches built ahead of time by a background thread; 0: build them in the training thread."""
    workers: NonNegative | None = None
    """Threads of a rank that decode and draw what is not stored (images, sound, hidden tokens), beside the one that builds batches; None: one per processor core that the rank has to itself, 8 at most; 0: that one does it. What is drawn depends on seed, pass and example alone."""


class Batch(Section):
    """The batch arithmetic. Accumulation follows from it and from the world size."""

    global_size: Positive
    """Sequences per optimizer step, over all ranks."""
    micro_size: Positive = 1
    """Sequences per rank in one forward and backward pass."""
    auto_micro_size: bool = False
    """Take the largest micro-batch that fits, as the plan made at start finds it; micro_size="auto" in a recipe file says the same. Dropout is drawn for each micro-batch: where there is any, the same plan gives the same run."""
    sequence_length: Positive = 512
    """Tokens per sequence, of tasks whose examples are sequences of tokens."""

    @model_validator(mode="before")
    @classmethod
    def _micro_size_by_the_plan(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("micro_size") == "auto":
            return {**fields, "micro_size": 1, "auto_micro_size": True}
        return fields

    def dividing_micro_size(self, replicas: int) -> int | None:
        """The largest micro-batch, at most this one, in which `replicas` share this global batch equally; None: they cannot."""
        per_rank, left = divmod(self.global_size, replicas)
        if left or not per_rank:
            return None
        return max(size for size in range(1, self.micro_size + 1) if per_rank % size == 0)
