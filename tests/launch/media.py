"""Tiny images and recordings, and checkpoints that read them, where recipes that were cut down look for them."""

from __future__ import annotations

from pathlib import Path

from tests import images, speech, vision


def write_media(rows: Path) -> Path:
    """Fill the folder `rows` as `tests.launch.shrink.Inputs` has it; the folder of what belongs to speech."""
    images.folder(rows / "image_classification", train=12, test=6)
    for kind in ("resnet", "vit"):
        images.checkpoint(kind, rows / f"image_classification-{kind}")
    vision.write(rows / "image_text_to_text.parquet", vision.questions())
    vision.checkpoint("llava", rows / "vision")
    heard = rows / "speech"
    speech.recordings(heard)
    speech.wav2vec2(heard / "wav2vec2")
    for kind in ("english", "multilingual"):
        speech.whisper(heard / kind, multilingual=kind == "multilingual")
    return heard
