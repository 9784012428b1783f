"""The configuration that a model is built from: a checkpoint's or an architecture's own, with the recipe's fields.

Fields are handed to the configuration class when it is built, never set afterwards: what it derives from them (the size
of a head, the kinds of layers) then follows them, as in transformers itself.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from toolkit.errors import InputError, ModelError, did_you_mean
from toolkit.models import rope
from toolkit.models.assets import resolve
from toolkit.models.files import check_files, unreadable
from toolkit.models.output_layer import parameter_shapes
from toolkit.models.quiet import quiet
from toolkit.recipe import Model

DROPOUT_NAMES = ("dropout", "dropout_prob", "dropout_rate", "pdrop")

ELSEWHERE = {
    "dtype": "set precision.dtype, and checkpoint.export_dtype for the export",
    "torch_dtype": "set precision.dtype, and checkpoint.export_dtype for the export",
    "attn_implementation": "set model.attention",
    "_attn_implementation": "set model.attention",
    "gradient_checkpointing": "set model.activation_checkpointing",
    "use_cache": "leave it out: training needs no cache, and the export says of it what the checkpoint or the architecture does",
    "model_type": "set model.architecture, or model.path to another checkpoint",
    "architectures": "leave it out: task.name chooses the model's class",
    "quantization_config": "leave it out: weights are trained unquantised",
    "output_attentions": "leave it out: training reads the loss alone",
    "output_hidden_states": "leave it out: training reads the loss alone",
    "return_dict": "leave it out: training reads the model's output by name",
}
"""Fields of configurations that decide nothing here, and what does."""


def load_config(model: Model, *, vocabulary_size: int | None, overrides: Mapping[str, Any]) -> PretrainedConfig:
    """The architecture: the checkpoint's config with the recipe's and the task's (`overrides`) fields laid over it.

    Without a checkpoint it is the architecture's config class, built from these fields. Its attention is not chosen yet
    (see models/attention_choice.py) unless the recipe names one. Raises ModelError for a field that there is not, or
    that does not act.
    """
    kind, stored, before = _stored(model) if model.path is not None else (_architecture(model), {}, None)
    given = {name: parsed(value) for name, value in model.config.items()}
    _check_fields(kind, stored, given, overrides)
    default = before or _default(kind)
    changes = {**given, **overrides}
    for name, value in _dropout(kind, default, model.dropout).items():
        changes[name] = {**changes.get(name, {}), **value} if isinstance(value, Mapping) else value
    try:
        if before is None:
            fields = changes if vocabulary_size is None else _with_vocabulary(kind, changes, vocabulary_size)
            config = _build(kind, fields)
        elif changes:
            config = _build(kind, _merged(kind, stored, before, changes))
        else:
            config = before
    except Exception as error:
        # Every architecture refuses in its own way numbers that do not fit together.
        raise unbuildable(given or changes, error) from None
    config._attn_implementation = None if model.attention in ("auto", "varlen") else model.attention
    config.use_cache = False
    return config


def _architecture(model: Model) -> type[PretrainedConfig]:
    known = transformers.CONFIG_MAPPING
    if model.architecture not in known:
        raise ModelError(
            f"model.architecture={model.architecture!r}{did_you_mean(str(model.architecture), known)}",
            expected="a model_type of transformers, such as llama, qwen3 or gpt2",
            do="correct model.architecture",
        )
    kind: type[PretrainedConfig] = known[model.architecture]
    return kind


def _stored(model: Model) -> tuple[type[PretrainedConfig], dict[str, Any], PretrainedConfig]:
    """Class, fields of config.json, and the configuration that transformers makes of them."""
    path = str(model.path)
    source = resolve(path)
    check_files("model.path", source)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(source)
            stored, _ = PretrainedConfig.get_config_dict(source)
    except Exception as error:
        # Files of other tools and later versions fail in ways of their own.
        raise unreadable("configuration", "model.path", path, source, error) from None
    quantised = stored.pop("quantization_config", None)
    if quantised is not None:
        _check_unquantised(model, quantised)
        del config.quantization_config
    # transformers may have chosen another class than the file names.
    return type(config), {**stored, "model_type": config.model_type, "name_or_path": source}, config


def _check_unquantised(model: Model, quantised: Mapping[str, Any]) -> None:
    if model.weights == "pretrained":
        method = quantised.get("quant_method", "some method") if isinstance(quantised, Mapping) else "some method"
        raise ModelError(
            f"model.path={model.path!r}: its weights are quantised ({method})",
            expected="unquantised weights: training changes all of them, by less than a quantised one can express",
            do="set model.path to the unquantised checkpoint (fp32, bf16 or fp16) it was made from",
        )


def _default(kind: type[PretrainedConfig]) -> PretrainedConfig | None:
    """The class's own defaults."""
    try:
        return kind()
    except Exception:
        # A few architectures need a field to be given.
        return None


def parsed(value: Any) -> Any:
    """A value of model.config: text that holds a JSON list, object or null stands for that."""
    if isinstance(value, str) and (value[:1] in "{[" or value == "null"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _as_json(value: Any) -> Any:
    """`value` as it comes out of a file: numbers that are keys are text there."""
    return json.loads(json.dumps(value))


def _check_fields(
    kind: type[PretrainedConfig], stored: Mapping[str, Any], given: Mapping[str, Any], overrides: Mapping[str, Any]
) -> None:
    """Raise ModelError for fields that the class does not know, and for those that something else decides."""
    known = {*kind.__dataclass_fields__, *kind.attribute_map, *vars(_default(kind) or object), *stored, "num_labels"}
    generation = GenerationConfig._get_default_generation_params()
    for name, value in given.items():
        begin = f"model.config[{name!r}]={value!r}"
        if name in ELSEWHERE:
            raise ModelError(f"{begin} does not act here", expected="fields of the network", do=ELSEWHERE[name])
        if name in overrides and _as_json(overrides[name]) != _as_json(value):
            raise ModelError(
                f"{begin}: the task sets {name} itself, to {overrides[name]!r}",
                expected="fields that nothing else decides",
                do=f"take {name} out of model.config",
            )
        if name not in known and name in generation:
            raise ModelError(
                f"{begin} does not act here: it belongs to generation",
                expected="fields of the network",
                do="leave it out; generation_config.json of the export holds it",
            )
        if name not in known and not _is_taken(kind, name, given):
            raise ModelError(
                f"{begin}: {kind.__name__} has no such field{did_you_mean(name, sorted(map(str, known)))}",
                expected="a field of the architecture's own config",
                do="see config.json of the checkpoint for the fields there are",
            )


def _is_taken(kind: type[PretrainedConfig], name: str, given: Mapping[str, Any]) -> bool:
    """Whether the class makes something of a name that is none of its fields (one of older files)."""
    if rope.is_rotary_name(kind, name):
        return True
    if name in dir(PretrainedConfig):
        return False
    for fields in ({name: given[name]}, given):
        try:
            # What it does not know it keeps as it is.
            return name not in vars(_build(kind, fields))
        except Exception:
            # It may have to come with others; what is wrong with all of them is said when they are used.
            continue
    return True


def _dropout(
    kind: type[PretrainedConfig], config: PretrainedConfig | None, probability: float | None
) -> dict[str, Any]:
    if probability is None:
        return {}
    stated = config.to_dict() if config is not None else {}
    fields: dict[str, Any] = _dropout_of(stated, probability)
    if kind.sub_configs:
        # Each part (an encoder and a decoder, a vision tower and a language model) may have a configuration of its own.
        sides = {part: _dropout_of(stated[part], probability) for part in kind.sub_configs if part in stated}
        fields |= {part: found for part, found in sides.items() if found}
    if not fields:
        raise ModelError(
            f"model.dropout={probability}: {kind.__name__} has no dropout",
            expected="an architecture with dropout, or None",
            do="remove model.dropout",
        )
    return fields


def _dropout_of(stated: Mapping[str, Any], probability: float) -> dict[str, float]:
    """The fields of `stated` that are a dropout's, as `probability`."""
    named = [name for name, value in stated.items() if name.endswith(DROPOUT_NAMES) and isinstance(value, int | float)]
    return dict.fromkeys(named, probability)


def _build(kind: type[PretrainedConfig], fields: Mapping[str, Any]) -> PretrainedConfig:
    with quiet():
        # Classes take their nested fields apart in place.
        return kind.from_dict(copy.deepcopy(_canonical(kind, fields)))


def _canonical(kind: type[PretrainedConfig], fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` under the class's own names: another name for one (GPT-2's hidden_size) is set too late to be derived from."""
    others = {kind.attribute_map[name]: value for name, value in fields.items() if name in kind.attribute_map}
    return {**{name: value for name, value in fields.items() if name not in kind.attribute_map}, **others}


def _with_vocabulary(kind: type[PretrainedConfig], fields: dict[str, Any], size: int) -> dict[str, Any]:
    """`fields` with the tokenizer's size where none is given."""
    if kind.attribute_map.get("vocab_size", "vocab_size") in kind.__dataclass_fields__:
        return {"vocab_size": size, **_canonical(kind, fields)}
    part = _text_part(kind)
    if part is None:
        return fields
    if fields.get(part):
        return {**fields, part: {"vocab_size": size, **fields[part]}}
    # Its defaults may be others inside the larger model than by themselves.
    return {**fields, part: {**getattr(kind(), part).to_dict(), "vocab_size": size}}


def _text_part(kind: type[PretrainedConfig]) -> str | None:
    """The field that holds the configuration of the language model inside a larger one."""
    default = _default(kind)
    try:
        text = default.get_text_config() if default is not None else None
    except ValueError:
        # Several of them (an encoder and a decoder).
        return None
    return next((part for part in kind.sub_configs if text is not None and getattr(default, part, None) is text), None)


def _merged(
    kind: type[PretrainedConfig], stored: Mapping[str, Any], before: PretrainedConfig, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of config.json with `changes` laid over them."""
    stored, changes = _canonical(kind, stored), _canonical(kind, changes)
    for name in _repeated_by_layer(kind, stored, changes):
        del stored[name]
    merged = {**stored, **changes}
    for part in kind.sub_configs:
        if isinstance(stored.get(part), Mapping) and isinstance(changes.get(part), Mapping):
            merged[part] = {**stored[part], **changes[part]}
    rotary = rope.override(kind, before, changes)
    if rotary is not None:
        plain = {name for name in merged if name not in kind.__dataclass_fields__ and rope.is_rotary_name(kind, name)}
        merged = {name: value for name, value in merged.items() if name not in plain} | {rope.FIELD: rotary}
    return merged


def _repeated_by_layer(
    kind: type[PretrainedConfig], stored: Mapping[str, Any], changes: Mapping[str, Any]
) -> list[str]:
    """Lists of config.json, one entry per layer, that only repeat what the class derives: they follow another depth."""
    depth = stored.get("num_hidden_layers")
    if changes.get("num_hidden_layers", depth) == depth:
        return []
    lists = [name for name, value in stored.items() if isinstance(value, list) and len(value) == depth]
    found = []
    for name in lists:
        others = {other: value for other, value in stored.items() if other != name}
        if name not in changes and getattr(_build(kind, others), name, None) == stored[name]:
            found.append(name)
    return found


def overruled(config: PretrainedConfig, model: Model) -> list[str]:
    """One line for each field of model.config that the class has replaced by what it derives from others."""
    lines = []
    for name, text in model.config.items():
        value, found = parsed(text), getattr(config, name, None)
        # Some classes make a list of it, one entry per layer.
        same = found == value or (isinstance(found, list) and set(map(str, found)) == {str(value)})
        if isinstance(value, int | float | str) and found is not None and not same:
            lines.append(f"model.config {name}={value} does not act: {type(config).__name__} makes it {found}")
    return lines


def check_overrides(kind: Any, model: Model, config: PretrainedConfig, unchanged: PretrainedConfig) -> None:
    """Raise ModelError when model.config gives no network, or one whose weights have other shapes than the checkpoint's.

    `kind` is one of transformers' auto classes, `unchanged` the config without model.config. Nothing is allocated.
    """
    if not model.config:
        return
    try:
        wanted = parameter_shapes(kind, config)
    except Exception as error:
        # Every architecture fails in its own way on numbers that do not fit together.
        raise unbuildable(model.config, error) from None
    if model.weights == "random":
        return
    stored = parameter_shapes(kind, unchanged)
    changed = [name for name, shape in wanted.items() if stored.get(name, shape) != shape]
    if changed:
        name = changed[0]
        raise ModelError(
            f"model.config={model.config}: {name} has shape {stored[name]} in the checkpoint and {wanted[name]} with it",
            expected="with pretrained weights, only fields that change no weight's shape",
            do="take the field that changes it out of model.config, or train from scratch with model.weights='random'",
        )


def unbuildable(given: Mapping[str, Any], error: Exception) -> InputError:
    """The message for `error`, raised by an architecture for the fields `given`; a message of ours stays as it is."""
    if isinstance(error, InputError):
        return error
    return ModelError(
        f"model.config={dict(given)}: no model can be built: {' '.join(str(error).split())[:300] or type(error).__name__}",
        expected="values of the architecture's own config that fit together",
        do="correct model.config; config.json of a checkpoint of this architecture shows usual values",
    )
