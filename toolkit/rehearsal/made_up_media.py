"""Images of noise and recordings of noise, with rows that name them, for a rehearsal whose data is elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from toolkit.data.words import CLASSES

SIDE = 32
"""Of an image, in pixels."""
RATE, LONGEST_S = 16_000, 1.0
"""Samples per second of a recording, and its longest."""
SPOKEN = ("one", "two", "three", "yes", "no")


def write_images(folder: Path, count: int, seed: int) -> None:
    """`count` images as folder/CLASS/NUMBER.png."""
    for number, image in enumerate(_images(count, seed)):
        place = folder / CLASSES[number % len(CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.png")


def write_questions(folder: Path, count: int, seed: int) -> None:
    """`count` short questions about an image each, in folder/rows.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, image in enumerate(_images(count, seed)):
        image.save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": f"Which is it, {number}?", "answer": CLASSES[number % 3]})
    _write(folder, rows)


def write_recordings(folder: Path, count: int, seed: int) -> None:
    """`count` recordings of noise with words that nobody says, in folder/rows.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        samples = random.normal(0, 0.1, int(RATE * random.uniform(0.5, LONGEST_S)))
        soundfile.write(folder / f"{number}.wav", samples.astype(np.float32), RATE)
        rows.append({"audio": f"{number}.wav", "text": " ".join(random.choice(SPOKEN, 2))})
    _write(folder, rows)


def _images(count: int, seed: int) -> Iterator[Image.Image]:
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def _write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
