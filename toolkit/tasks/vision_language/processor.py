"""A checkpoint's processor: its tokenizer, its image processor, and what it writes in the place of an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available

from toolkit.errors import ModelError
from toolkit.models.loading import READ_ERRORS, ProcessorFiles
from toolkit.models.quiet import quiet
from toolkit.recipe import Model

SAID_IN = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)
"""Files that may name the class of the processor, in transformers' order."""
VIDEO_FILE = "video_preprocessor_config.json"


def load_processor(model: Model) -> Any:
    """The recipe's processor, its chat template also that of its tokenizer. Raises ModelError where there is none.

    Image processors are Pillow's where torchvision is not installed. The video processors of transformers all need it:
    without it a processor is built without that part, which nothing here reads.
    """
    files = ProcessorFiles.of(model)
    kind = _class_of(files)
    with files.reading("processor"):
        try:
            processor = (kind if is_torchvision_available() else _without_video(kind)).from_pretrained(files.folder)
        except ImportError as error:
            said = " ".join(str(error).split())
            raise ModelError(
                f"{files.field}={files.name!r}: its {kind.__name__} needs a package that is not installed: {said[:300]}",
                expected="the packages that the checkpoint's own processor imports",
                do="install what the message names with pip",
            ) from None
    _check(processor, files)
    if processor.chat_template is not None:
        processor.tokenizer.chat_template = processor.chat_template
    return processor


def _class_of(files: ProcessorFiles) -> type[Any]:
    """The class of the processor, as transformers' AutoProcessor finds it."""
    for file in SAID_IN:
        path = Path(files.folder) / file
        if path.is_file():
            try:
                said = json.loads(path.read_text(encoding="utf-8")).get("processor_class")
            except (OSError, ValueError, AttributeError) as error:
                raise files.unreadable("processor", error) from None
            found = processor_class_from_name(said) if isinstance(said, str) else None
            if found is not None:
                return found  # type: ignore[no-any-return]
    try:
        with quiet():
            found = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(files.folder))]
    except (KeyError, *READ_ERRORS):
        found = None
    if found is None:
        raise ModelError(
            f"{files.field}={files.name!r} has no processor: none of its files names one, and its architecture has none",
            expected=f"a checkpoint that reads images, with a {SAID_IN[0]} or a {SAID_IN[1]}",
            do=f"set {files.field} to a vision-language checkpoint, or task.name='causal_lm' for text alone",
        )
    return found  # type: ignore[no-any-return]


def _without_video(kind: type[Any]) -> type[Any]:
    """`kind`, under its own name, without the part that reads videos."""
    kept = [name for name in kind.get_attributes() if "video" not in name]
    if len(kept) == len(kind.get_attributes()):
        return kind
    content = {"get_attributes": classmethod(lambda _: list(kept)), "__module__": kind.__module__}
    return type(kind.__name__, (kind,), content)


def _check(processor: Any, files: ProcessorFiles) -> None:
    parts = {"image_processor": "an image processor", "tokenizer": "a tokenizer", "image_token": "a token for images"}
    lacking = [said for part, said in parts.items() if getattr(processor, part, None) is None]
    if not lacking and type(processor).replace_image_token is ProcessorMixin.replace_image_token:
        lacking = ["a rule for the tokens of an image"]
    if lacking:
        raise ModelError(
            f"{files.field}={files.name!r}: its {type(processor).__name__} has not {' and not '.join(lacking)}",
            expected="the processor of a model that reads images in a text",
            do=f"set {files.field} to a vision-language checkpoint, or task.name='causal_lm' for text alone",
        )
    if not (processor.chat_template or processor.tokenizer.chat_template):
        raise ModelError(
            f"{files.field}={files.name!r}: neither its processor nor its tokenizer has a chat template",
            expected="a template, which says where in a conversation an image stands",
            do="take an instruction-tuned checkpoint, or put a chat_template.jinja beside its tokenizer",
        )


def video_settings(source: Path) -> dict[str, Any]:
    """Settings of the video part that the processor at `source` was built without, for the export: {file: content}, or none."""
    if is_torchvision_available():
        return {}
    for file, key in ((VIDEO_FILE, None), (SAID_IN[0], "video_processor")):
        path = source / file
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content if key is None else content.get(key)
            if isinstance(found, dict):
                return {VIDEO_FILE: found}
    return {}
