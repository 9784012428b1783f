"""Sequence-to-sequence: an encoder reads the source, a decoder writes the target."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn
from transformers import AutoModel, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from toolkit.data.example import IGNORED, Example, Row, as_bytes, as_text
from toolkit.data.packing import Counts
from toolkit.data.preview import Shown
from toolkit.data.reading.row_names import RowName
from toolkit.data.tokens import cut
from toolkit.errors import DataError, ModelError, RecipeError, plural
from toolkit.models.causality import check_causal, foresight
from toolkit.models.decoding import Generate, GenerationSettings
from toolkit.models.pooler import freeze_pooler
from toolkit.models.positions import check_sequence_length
from toolkit.recipe import Batch as BatchSizes
from toolkit.recipe import Seq2Seq
from toolkit.recipe.tasks.seq2seq import MEASURED
from toolkit.tasks.base import NO_FIELDS, TRAINED, Batch, Record
from toolkit.tasks.columns import checked_text, in_column, text_of
from toolkit.tasks.decoder_targets import DecoderTask
from toolkit.tasks.metrics.summaries import summary_scores
from toolkit.tasks.metrics.translation import translation_scores
from toolkit.tasks.padded import check_padding, closing_tokens, padded
from toolkit.tasks.stop_tokens import trained_ends

SOURCE = ("input_ids", "attention_mask")
"""What the encoder reads, [B, S] each."""
REFERENCE = "reference"
"""Name in an example of the whole target as the tokenizer writes it, UTF-8 bytes: what generated targets are compared with.

So a model is not told off for what its tokenizer cannot write, such as capitals, nor praised for a target that was cut.
"""


class Seq2SeqTask(DecoderTask):
    """Predict each token of the target from those before it and the whole source.

    Rows hold two texts, or {"en": ..., "de": ...}. Targets are the tokenizer's (`text_target`), as in transformers' own
    examples, with the end token behind them where it puts none there.
    """

    auto_class = AutoModelForSeq2SeqLM
    reads_padding = True
    settles = True

    def __init__(self, options: Seq2Seq, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(options, tokenizer)
        check_padding(tokenizer)
        languages = (("source_language", "src_lang"), ("target_language", "tgt_lang"))
        known = [self._set_language(ours, theirs) for ours, theirs in languages]
        self._reads_languages = any(known) or (self._is_chinese and "bleu" in options.scores)
        ends = [token for token in (tokenizer.eos_token_id, tokenizer.sep_token_id) if token is not None]
        if not ends:
            raise RecipeError(
                f"the tokenizer at {tokenizer.name_or_path!r} has no token that ends a text",
                expected="an eos_token, or a sep_token: a target without an end would be written for ever",
                do="use a checkpoint whose tokenizer names one, or add it to tokenizer_config.json",
            )
        self._end: int = ends[0]

    def _set_language(self, field: str, attribute: str) -> bool:
        """Tell a tokenizer of many languages; whether this is one that knows the language by that name."""
        language = getattr(self.options, field)
        if language is None or not hasattr(self.tokenizer, attribute) or language not in self.tokenizer.get_vocab():
            return False
        setattr(self.tokenizer, attribute, language)
        return True

    @property
    def _is_chinese(self) -> bool:
        return (self.options.target_language or "").lower().startswith(("zh", "zho"))

    def fit(
        self,
        rows: Iterable[Row],
        checkpoint: Any = None,
        fields: Mapping[str, Any] = NO_FIELDS,
        row_name: RowName = TRAINED,
    ) -> None:
        """Raise RecipeError for languages that have no effect: no row has them, the tokenizer does not know them."""
        options = self.options
        if options.source_language is None or self._reads_languages:
            return
        column = options.translation_field
        if all(row.get(column) is None for row in in_column(rows, column)):
            raise RecipeError(
                f"task.source_language={options.source_language!r} and task.target_language={options.target_language!r} "
                f"have no effect: no row has task.translation_field={column!r}, and the tokenizer has no tokens of that name",
                expected='rows with {"en": "...", "de": "..."} in task.translation_field, or a tokenizer of many languages',
                do="take both out, or set task.translation_field to the column that holds the texts of both languages",
            )

    def meet(self, config: Any, batch: BatchSizes) -> None:
        """Raise ModelError where the config has no token that begins a target, or too few positions for a text."""
        if getattr(config, "decoder_start_token_id", None) is None:
            raise ModelError(
                f"the config of the model ({config.model_type}) has no decoder_start_token_id",
                expected="the token that begins every target, as in config.json of a trained encoder-decoder",
                do="set model.config={'decoder_start_token_id': N}: T5 takes its padding token, BERT's family [CLS], BART </s>",
            )
        encoder, decoder = (
            getattr(config, name) if name in config.sub_configs else config for name in ("encoder", "decoder")
        )
        kind = self.auto_class if encoder is config else AutoModel
        check_sequence_length(kind, encoder, batch.sequence_length)
        check_sequence_length(kind, decoder, self.options.target_length, "task.target_length")
        if self.options.max_new_tokens is not None:
            check_sequence_length(kind, decoder, self.options.max_new_tokens, "task.max_new_tokens")

    def stop_tokens(self, rows: Iterable[Row]) -> tuple[int, ...]:
        """The tokens that end targets."""
        return trained_ends(rows, self._targets_alone, self.tokenizer)

    def _targets_alone(self, row: Row) -> list[Example]:
        return [{"input_ids": example["labels"], "labels": example["labels"]} for example in self.encode(row)]

    # One row, one example

    def encode(self, row: Row) -> list[Example]:
        """input_ids [S] of the source, labels [T] of the target, closing [2]: special tokens at the end of each."""
        source, target = self._texts(row)
        read, read_closing = self._encoded(text=self.options.source_prefix + source)
        written, written_closing = self._encoded(text_target=target)
        if not written_closing:
            written, written_closing = [*written, self._end], 1
        return [
            {
                "input_ids": np.array(read, np.int32),
                "labels": np.array(written, np.int32),
                "closing": np.array([read_closing, written_closing], np.int32),
                REFERENCE: as_bytes(self._decoded(written)),
            }
        ]

    def _texts(self, row: Row) -> tuple[str, str]:
        options = self.options
        pair = row.get(options.translation_field) if options.source_language is not None else None
        if pair is None:
            source = text_of(row, options.source_field, "source_field")
            return source, text_of(row, options.target_field, "target_field")
        where = f"task.translation_field={options.translation_field!r}"
        if not isinstance(pair, Mapping):
            raise DataError(
                f"{where} gives {pair!r:.60}",
                expected='an object of texts by language, such as {"en": "...", "de": "..."}',
                do="write it so, or name other columns in task.source_field and task.target_field",
            )
        texts = []
        for field in ("source_language", "target_language"):
            language = getattr(options, field)
            if language not in pair:
                raise DataError(
                    f"{where} has no {language!r}, task.{field}; it has {', '.join(map(repr, pair)) or 'nothing'}",
                    expected="both languages in every row",
                    do=f"correct task.{field}, or remove the row",
                )
            texts.append(checked_text(pair[language], f"{where}, {language!r},"))
        return texts[0], texts[1]

    def _encoded(self, **text: str) -> tuple[list[int], int]:
        """Token ids, and how many of them are special tokens at the end."""
        encoded = self.tokenizer(**text, truncation=False, verbose=False, return_special_tokens_mask=True)
        return list(encoded["input_ids"]), closing_tokens(encoded["special_tokens_mask"])

    def columns(self, row: Row) -> Collection[str]:
        """The two texts, or the one column that has both."""
        options = self.options
        if options.source_language is not None and row.get(options.translation_field) is not None:
            return (options.translation_field,)
        return (options.source_field, options.target_field)

    def size(self, example: Example) -> int:
        """Tokens of the source and of the target."""
        return len(example["input_ids"]) + len(example["labels"])

    def targets(self, example: Example) -> int:
        """Tokens of the target."""
        return int(np.count_nonzero(example["labels"] != IGNORED))

    def fitted(self, example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
        """Sources of at most `capacity` tokens and targets of at most task.target_length."""
        limits = {"input_ids": capacity, "labels": self.options.target_length}
        lengths = {name: len(example[name]) for name in limits}
        over = [name for name, limit in limits.items() if lengths[name] > limit]
        if not over:
            return [example]
        if overlong == "truncate":
            counts.truncated += "input_ids" in over
            counts.cut_targets += "labels" in over
            closings = dict(zip(limits, example["closing"].tolist(), strict=True))
            return [example | {name: cut(example[name], limits[name], closings[name]) for name in over}]
        if overlong == "drop":
            counts.dropped += "input_ids" in over
            counts.long_targets += "input_ids" not in over
            return []
        name = over[0]
        text, field = ("source", "batch.sequence_length") if name == "input_ids" else ("target", "task.target_length")
        raise DataError(
            f"a {text} has {lengths[name]} tokens and {field} is {limits[name]}",
            expected="texts that fit, since data.overlong='error'",
            do=f"raise {field}, or set data.overlong to 'truncate' or 'drop'",
        )

    def show(self, example: Example) -> Shown:
        """The source, and the target, which is trained."""
        read, written = (self._decoded(example[name], special=True) for name in ("input_ids", "labels"))
        counted = f"{plural(len(example['input_ids']), 'token')} read, {len(example['labels']):,} trained"
        return Shown(counted, [(f"{read}\n-> ", False), (written, True)])

    def _decoded(self, ids: Any, *, special: bool = False) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
        return str(text) if special else str(text).strip()

    # A batch

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """input_ids, attention_mask [B, S]; labels [B, T], -100 behind a target's end; target_rows [M]."""
        examples = [sequence[0] for sequence in sequences]
        return {**self._sources(examples), **self.targets_of(examples)}

    def stand_in(self, length: int, config: Any) -> Example:
        """A source of `length` tokens, and the longest target."""
        return {"input_ids": np.zeros(length, np.int32), "labels": np.zeros(self.options.target_length, np.int32)}

    def _sources(self, examples: Sequence[Example]) -> Batch:
        found = padded(self.tokenizer, examples)
        return {name: found[name] for name in SOURCE}

    # The model

    def prepare(self, model: nn.Module) -> None:
        """As for every decoder; leave a pooler as it is."""
        freeze_pooler(model)
        super().prepare(model)

    def encoder_inputs(self, model: Any, batch: Batch) -> Batch:
        """input_ids and attention_mask [B, S]."""
        return {name: batch[name] for name in SOURCE}

    def settle(self, model: nn.Module) -> None:
        """Raise ModelError for a decoder that sees what it is to predict."""
        check_causal(foresight(model), model.config, model, self.options.name)

    # Generated targets

    @property
    def makes_records(self) -> bool:
        """Whether targets are generated and scored."""
        return bool(self.options.scores)

    def predict(self, model: nn.Module, batch: Batch, examples: Sequence[Example], generate: Generate) -> list[Record]:
        """The source as it was read, the generated target, and the row's own."""
        answers = self._generated(batch, generate)
        return [
            {
                "source": self._decoded(example["input_ids"]),
                "prediction": answer,
                "reference": as_text(example[REFERENCE]),
            }
            for example, answer in zip(examples, answers, strict=True)
        ]

    def _generated(self, batch: Batch, generate: Generate) -> list[str]:
        options = self.options
        longest = options.max_new_tokens or options.target_length
        settings = GenerationSettings(longest, num_beams=options.num_beams, pad_id=self.tokenizer.pad_token_id)
        read = {name: batch[name] for name in SOURCE}
        return [self._decoded(answer) for answer in generate(read, settings)]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """What task.scores asks for: bleu and chrf, 0 to 100; rouge1, rouge2 and rougeL, 0 to 1."""
        found: dict[str, float] = {}
        if {"bleu", "chrf"} & set(self.options.scores):
            found |= translation_scores(records, tokenizer="zh" if self._is_chinese else None)
        if "rouge" in self.options.scores:
            found |= summary_scores(records)
        return {name: found[name] for score in self.options.scores for name in MEASURED[score]}

    def sample(self, model: nn.Module, generate: Generate) -> str | None:
        """What the model writes for task.sample_prompt."""
        prompt = self.options.sample_prompt
        if prompt is None:
            return None
        source = np.array(self._encoded(text=self.options.source_prefix + prompt)[0], np.int64)
        return self._generated(self._sources([{"input_ids": source}]), generate)[0]
