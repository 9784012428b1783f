"""Vision-language tuning: the language model's task, on conversations in which images stand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText

from toolkit.data import tokens
from toolkit.data.example import IGNORED, Example, Ints, Row
from toolkit.data.forms.chat import Places, encode_conversation
from toolkit.data.forms.chat_template import template_of
from toolkit.data.forms.images import PLACEHOLDER, Illustrated, illustrated
from toolkit.data.forms.messages import Conversation
from toolkit.data.forms.row_kind import RowKind, row_kind
from toolkit.data.forms.row_remarks import looked_at
from toolkit.data.media.images import check_image, decode_image, size_of
from toolkit.data.media.stored import Stored
from toolkit.data.packing import Counts
from toolkit.data.preview import Shown
from toolkit.data.reading.row_names import RowName
from toolkit.errors import DataError, ModelError, plural
from toolkit.models.attention_choice import model_class
from toolkit.models.decoding import Generate, GenerationSettings, left_padded
from toolkit.models.grid_positions import GridPositions
from toolkit.models.heads import use_loss_head
from toolkit.models.positions import check_sequence_length
from toolkit.models.vision_parts import vision_parts
from toolkit.recipe import Batch as BatchSizes
from toolkit.recipe import ImageTextToText, Model
from toolkit.tasks.base import TRAINED, Batch, Record
from toolkit.tasks.language.causal_lm import CausalLMTask
from toolkit.tasks.stop_tokens import trained_ends
from toolkit.tasks.vision_language.answers import answer_metrics, last_answer
from toolkit.tasks.vision_language.batches import SPANS, ImageBatches
from toolkit.tasks.vision_language.files import NAMES, STORED, contents, files_of
from toolkit.tasks.vision_language.pixels import ImageReader, ReadText
from toolkit.tasks.vision_language.processor import load_processor, video_settings
from toolkit.tasks.vision_language.rows import (
    LocatedRow,
    caption_column,
    captioned,
    image_columns,
    images_of,
    read,
    up_to_the_last_answer,
)

FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm")
"""Architectures (model_type) whose batches, positions and losses are known to be transformers' own."""


class ImageTextTask(CausalLMTask):
    """Predict each token of the answers from the text and the images before it.

    The processor's chat template and its own tokens for an image decide what the model reads: input_ids are those of
    `processor.apply_chat_template`. How many tokens an image has follows from its size, which its header says; its pixels
    are made when a batch is.
    """

    auto_class = AutoModelForImageTextToText
    sourced = STORED
    provenance = frozenset((NAMES,))
    transforms = True
    options: ImageTextToText

    def __init__(self, options: ImageTextToText, processor: Any) -> None:
        super().__init__(options, processor)
        self.reader = ImageReader(processor)
        self.batches = ImageBatches(self.tokenizer, self.reader)

    @classmethod
    def load_processor(cls, model: Model) -> Any:
        """The checkpoint's processor, with the chat template of both parts in its tokenizer."""
        return load_processor(model)

    # The rows as a whole

    def remarks(self, rows: Iterable[Row], row_name: RowName = TRAINED) -> list[str]:
        """As for text; where images stand whose place no row names; what is left as it is."""
        said = super().remarks(rows, row_name)
        if self._names_no_place(rows):
            said.append(
                "note: rows have images and name no place for them: they stand before the first question "
                f"(write {PLACEHOLDER} in a text, or parts of the type 'image', for another place)"
            )
        if self.options.freeze_vision_tower:
            said.append("the vision tower stays as it is (task.freeze_vision_tower=False trains it, too)")
        return said

    def _names_no_place(self, rows: Iterable[Row]) -> bool:
        for _, row in looked_at(rows):
            with contextlib.suppress(DataError):  # said, with its number, when the row is encoded
                if not self._is_caption(kind := self._kind(row)) and self._illustrated(row, kind).names_no_place:
                    return True
        return False

    def meet(self, config: Any, batch: BatchSizes) -> None:
        """Learn what the model takes. Raises ModelError for one whose batches are not known here, or that another
        processor belongs to."""
        if config.model_type not in FAMILIES:
            raise ModelError(
                f"the model is a {config.model_type}",
                expected=f"one of {', '.join(FAMILIES)}, whose batches and positions are known here",
                do="choose such a checkpoint; for its language model alone, task.name='causal_lm'",
            )
        token, wanted = self.processor.image_token_id, config.image_token_id
        if token != wanted:
            raise ModelError(
                f"the processor's token for images, {self.reader.token!r}, has the id {token}, and the model's config says "
                f"image_token_id={wanted}",
                expected="one id: where that token stands, the model puts an image",
                do="set model.tokenizer to the model's own processor"
                + (f", or model.config={{'image_token_id': {token}}}" if isinstance(token, int) else ""),
            )
        check_sequence_length(AutoModel, config.get_text_config(), batch.sequence_length)
        self.reader.take(model_class(self.auto_class, config))
        self.batches.grid = GridPositions.of(config)

    def stop_tokens(self, rows: Iterable[Row]) -> tuple[int, ...]:
        """The tokens that carry loss at the ends of answers. No image is read for them."""
        return trained_ends(rows, lambda row: [self._encoded(self._read(row), None)], self.tokenizer)

    def files(self, config: Any, batch: BatchSizes) -> dict[str, Any]:
        """Settings of the processor's video part, where it was built without one."""
        return video_settings(Path(self.tokenizer.name_or_path))

    # One row

    def located(self, row: Row, folder: Path | None) -> Row:
        """`row`, with the folder of its file at hand."""
        return LocatedRow.of(row, folder)

    def _kind(self, row: Row) -> RowKind:
        options = self.options
        return row_kind(
            row,
            messages_field=options.messages_field,
            prompt_field=options.prompt_field,
            completion_field=options.completion_field,
            text_field=caption_column(row, options),
        )

    def _is_plain(self, kind: RowKind) -> bool:
        """Nothing is: a caption answers its image."""
        return False

    def _name(self, kind: RowKind) -> str:
        return "captions" if self._is_caption(kind) else super()._name(kind)

    def _is_caption(self, kind: RowKind) -> bool:
        return kind == "text"

    def _columns(self, row: Row, kind: RowKind) -> list[str]:
        columns = [caption_column(row, self.options)] if self._is_caption(kind) else super()._columns(row, kind)
        return [*columns, *(name for name in image_columns(row, self.options) if name not in columns)]

    def _conversation(self, row: Row, kind: RowKind) -> Conversation:
        """What `row` says, with a mark for each image."""
        return self._illustrated(row, kind).conversation

    def _illustrated(self, row: Row, kind: RowKind) -> Illustrated:
        images = images_of(row, self.options)
        if self._is_caption(kind):
            return captioned(row, images, self.options)
        return illustrated(super()._conversation(row, kind), images)

    def _read(self, row: Row) -> Illustrated:
        """What is learned of `row`."""
        return up_to_the_last_answer(self._illustrated(row, self._kind(row)), self.options.train_on)

    def encode(self, row: Row) -> list[Example]:
        """One example: tokens, labels that are -100 where nothing is learned, where its images stand, and their files."""
        found = self._read(row)
        return [self._encoded(found, self._files(row, found))]

    def _files(self, row: Row, found: Illustrated) -> list[Stored]:
        folder = getattr(row, "folder", None)
        return [read(image, folder) for image in found.images]

    def _encoded(self, found: Illustrated, images: list[Stored] | None) -> Example:
        """The example of a row; without its `images` with one token in the place of each."""
        if images is None:
            written = [self.reader.token] * len(found.images)
        else:
            sizes = [(size_of(image.content, image.name, self.options.max_pixels), image.name) for image in images]
            written = [self.reader.written(*size) for size in sizes]
        seen: list[ReadText] = []

        def read_text(text: str) -> tuple[Ints, Places]:
            seen.append(self.reader.read(text, written, found.conversation.where))
            return seen[0].ids, seen[0].places

        example = encode_conversation(
            self.tokenizer, found.conversation, train_on=self.options.train_on, read=read_text
        )
        spans = seen[0].spans
        for start, stop in spans:
            example["labels"][start:stop] = IGNORED
        return {**example, SPANS: spans, **files_of(images or [])}

    def source(self, row: Row) -> Example:
        """The files of the images."""
        return files_of(self._files(row, self._read(row)))

    def examine(self, example: Example) -> None:
        """Decode each image once."""
        for content, name in contents(example):
            check_image(content, name, self.options.max_pixels)

    def fitted(self, example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
        """As for text; "truncate" cuts before an image of which not all tokens would be left, and leaves out those behind."""
        if overlong == "truncate" and tokens.size(example) > capacity:
            spans = example[SPANS]
            cut = [int(start) for start, stop in spans if start < capacity < stop]
            kept = min([capacity, *cut])
            counts.truncated += 1
            shorter = {name: example[name][:kept] for name in ("input_ids", "labels")}
            return [{**example, **shorter, SPANS: spans[spans[:, 1] <= kept]}]
        return super().fitted(example, capacity, overlong, counts)

    def transform(self, example: Example, random: np.random.Generator, *, is_trained: bool) -> Example:
        """The pixels of the images, as the checkpoint's image processor makes them; nothing is drawn."""
        ids, spans, most = example["input_ids"], example[SPANS], self.options.max_pixels
        files = contents(example)[: len(spans)]
        images = [(decode_image(content, name, most), name) for content, name in files]
        arrays, written = self.reader.arrays(images)
        for text, (start, stop), (_, name) in zip(written, spans, images, strict=True):
            self.reader.check(text, ids[start:stop], name)
        kept = {name: value for name, value in example.items() if name not in STORED}
        return self.batches.ready(kept, arrays)

    def show(self, example: Example) -> Shown:
        """The text, with one token for each image, and how many it has."""
        spans = example[SPANS]
        hidden = np.zeros(len(example["input_ids"]), dtype=bool)
        for start, stop in spans:
            hidden[start:stop] = True
            hidden[start + int(self.batches.is_image(example["input_ids"][start:stop]).argmax())] = False
        short = {name: example[name][~hidden] for name in ("input_ids", "labels")}
        shown = tokens.show(self.tokenizer, short)
        sizes = ", ".join(str(stop - start) for start, stop in spans)
        heading = f"{plural(tokens.size(example), 'token')}, {tokens.num_targets(example):,} trained"
        said = f", {plural(len(spans), 'image')} of {sizes} tokens (one is shown)" if len(spans) else ", no image"
        return replace(shown, heading=heading + said)

    # A batch

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """As for text, with pixel_values and what else the model takes of all images, in the order of their tokens.

        position_ids are [4, B, T] for models that rotate by time, row and column: the text's own first.
        """
        return self.batches.packed(sequences)

    # The model

    def frozen(self, model: nn.Module, *, beside_adapters: bool) -> frozenset[str]:
        """The vision tower, and the projector, by task.freeze_vision_tower and task.freeze_projector; what is not read."""
        options, parts = self.options, vision_parts(model)
        leaves_projector = beside_adapters if options.freeze_projector is None else options.freeze_projector
        tower = parts.tower if options.freeze_vision_tower else frozenset()
        return tower | parts.unread | (parts.projector if leaves_projector else frozenset())

    def prepare(self, model: nn.Module) -> None:
        """Let the output head compute what is learned itself; leave the parts that are frozen as they are."""
        use_loss_head(model)
        frozen = self.frozen(model, beside_adapters=False)
        for name, parameter in model.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)

    def _told(self, model: Any, batch: Batch) -> dict[str, Any]:
        told = super()._told(model, batch)
        if self.batches.grid is None or "flash" not in model.config._attn_implementation:
            return told
        # These models hand all options on to their tower, whose attention has bounds of its own by the same names.
        return {name: value for name, value in told.items() if name in batch}

    # Generated answers

    @property
    def makes_records(self) -> bool:
        """Whether answers are generated and scored."""
        return bool(self.options.scores)

    def predict(self, model: nn.Module, batch: Batch, examples: Sequence[Example], generate: Generate) -> list[Record]:
        """What the last answer follows, what is generated there, and the row's own answer."""
        bounds = [last_answer(example) for example in examples]
        prompts = [self.batches.beginning(example, start) for example, (start, _) in zip(examples, bounds, strict=True)]
        settings = GenerationSettings(self.options.max_new_tokens, pad_id=self.tokenizer.pad_token_id)
        answers = generate(self.batches.prompts(prompts), settings)[: len(examples)]
        return [
            {
                "prompt": self._said(prompt["input_ids"][~self.batches.is_image(prompt["input_ids"])]),
                "prediction": self._said(answer),
                "reference": self._said(example["input_ids"][start:stop]),
            }
            for example, prompt, answer, (start, stop) in zip(examples, prompts, answers, bounds, strict=True)
        ]

    def _said(self, ids: Any) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """What task.scores asks for, from 0 to 1."""
        return answer_metrics(records, self.options.scores)

    def sample(self, model: nn.Module, generate: Generate) -> str | None:
        """The greedy answer to task.sample_prompt."""
        if self.options.sample_prompt is None:
            return None
        messages = [{"role": "user", "content": self.options.sample_prompt}]
        text = template_of(self.tokenizer).text(messages, "task.sample_prompt", prompt=True)
        ids = self.reader.read(text, [], "task.sample_prompt").ids.tolist()
        settings = GenerationSettings(self.options.sample_tokens, pad_id=self.tokenizer.pad_token_id)
        return self._said(generate(left_padded([ids], 0), settings)[0])
