"""Pictures of coloured shapes, drawn here, with questions about them and their answers; no network.

Every scene follows from its number by Python's own generator, every picture from its scene by Pillow: the same versions
of both give the same bytes.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL
from PIL import Image, ImageDraw
from rich.console import Console

from toolkit.data.sets.rows import Row, Splits, share

LICENCE = "CC0-1.0: drawn by this program"
SCENES = 5000
QUESTIONS = 2
"""Asked about each scene, beside its caption."""
HELD_OUT = 0.06
"""Share of the scenes whose questions are test rows."""
SIDE = 48
"""Pixels of a picture's side."""
COLOURS = {
    "red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 90, 200), "yellow": (240, 210, 30),
    "purple": (130, 60, 170), "black": (20, 20, 20),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = (
    "top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
"""The cells of a grid of three by three, row by row."""
NUMBERS = ("no", "one", "two", "three")
GROUNDS = ((255, 255, 255), (235, 235, 225), (215, 225, 235))

ASKED = {
    "colour": ("What colour is the {shape}?", "Which colour does the {shape} have?", "Name the colour of the {shape}."),
    "shape": ("Which shape is {colour}?", "What is the {colour} thing?", "Name the {colour} shape."),
    "place": (
        "Where is the {shape}?",
        "Where in the picture is the {colour} {shape}?",
        "In which place is the {shape}?",
    ),
    "count": ("How many shapes are there?", "Count the shapes.", "How many things does the picture show?"),
    "presence": ("Is there a {colour} {shape}?", "Does the picture show a {colour} {shape}?"),
    "caption": ("Describe the picture.", "What does the picture show?", "Write a caption."),
}
"""Kinds of questions, with their phrasings."""


@dataclass(frozen=True)
class Drawn:
    """One shape in a picture."""

    shape: str
    colour: str
    place: int
    """Index in PLACES."""
    size: int
    """Half its height, in pixels."""

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape} at the {PLACES[self.place]}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows: shapes of different kinds and colours, in the order of their places."""

    ground: int
    shapes: tuple[Drawn, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.shapes))


@dataclass(frozen=True)
class Rendered:
    """The program itself."""

    download_bytes: int = 0

    @property
    def pin(self) -> str:
        """What draws."""
        return f"Pillow {PIL.__version__}"

    @property
    def facts(self) -> tuple[str, ...]:
        """Where the pictures come from."""
        return (f"Drawn by Pillow {PIL.__version__}.",)

    def fetch(self, console: Console) -> Path:
        """Nothing is needed."""
        return Path()


PROGRAM = Rendered()


def pictures(root: Path) -> Splits:
    """{"image", "question", "answer", "kind"}: 48 x 48 pixels as PNG, and a question about one picture with its answer.

    A scene has one to three shapes (circle, square, triangle, cross), each of another kind and colour (of six) in another
    cell of a grid of three by three, on one of three light grounds. Its number seeds what it has and what is asked, in which
    of several phrasings: a caption, and two of five kinds of questions, the colour of a shape, the shape of a colour, where
    one is, how many there are, whether there is one (half of the answers are no). 6 % of the scenes, chosen by a hash of what
    they show, are held out as the test split: no scene is in both. Who knows no picture, and gives each kind of question its most frequent
    answer, is right in 18 % of the test rows.
    """
    splits: dict[str, list[Row]] = {"train": [], "test": []}
    for number in range(SCENES):
        draw = random.Random(number)
        scene = _scene(draw)
        picture = {"bytes": render(scene), "path": f"{number:05d}.png"}
        split = "test" if share(f"held out {scene}") < HELD_OUT else "train"
        for kind, question, answer in _asked(draw, scene):
            splits[split].append({"image": picture, "question": question, "answer": answer, "kind": kind})
    return splits


def _scene(draw: random.Random) -> Scene:
    count = draw.randint(1, 3)
    shapes, colours = draw.sample(SHAPES, count), draw.sample(list(COLOURS), count)
    places = sorted(draw.sample(range(len(PLACES)), count))
    found = zip(shapes, colours, places, strict=True)
    return Scene(draw.randrange(len(GROUNDS)), tuple(Drawn(*each, size=draw.randint(5, 7)) for each in found))


def _asked(draw: random.Random, scene: Scene) -> Iterator[tuple[str, str, str]]:
    """(kind, question, answer) of each question about `scene`."""
    for kind in ("caption", *draw.sample([kind for kind in ASKED if kind != "caption"], QUESTIONS)):
        about = draw.choice(scene.shapes)
        words = {"shape": about.shape, "colour": about.colour}
        if kind == "presence" and draw.random() < 0.5:
            seen = {(each.shape, each.colour) for each in scene.shapes}
            others = [(shape, colour) for shape in SHAPES for colour in COLOURS if (shape, colour) not in seen]
            words["shape"], words["colour"] = draw.choice(others)
        answers = {
            "colour": about.colour,
            "shape": about.shape,
            "place": PLACES[about.place],
            "count": NUMBERS[len(scene.shapes)],
            "presence": "yes" if (about.shape, about.colour) == (words["shape"], words["colour"]) else "no",
            "caption": str(scene)[0].upper() + str(scene)[1:] + ".",
        }
        yield kind, draw.choice(ASKED[kind]).format(**words), answers[kind]


def render(scene: Scene) -> bytes:
    """The picture of `scene`, as PNG."""
    image = Image.new("RGB", (SIDE, SIDE), GROUNDS[scene.ground])
    pencil = ImageDraw.Draw(image)
    for drawn in scene.shapes:
        row, column = divmod(drawn.place, 3)
        x, y, size, colour = 8 + 16 * column, 8 + 16 * row, drawn.size, COLOURS[drawn.colour]
        box = (x - size, y - size, x + size, y + size)
        if drawn.shape == "circle":
            pencil.ellipse(box, fill=colour)
        elif drawn.shape == "square":
            pencil.rectangle(box, fill=colour)
        elif drawn.shape == "triangle":
            pencil.polygon([(x, y - size), (x - size, y + size), (x + size, y + size)], fill=colour)
        else:
            pencil.rectangle((x - size, y - 2, x + size, y + 2), fill=colour)
            pencil.rectangle((x - 2, y - size, x + 2, y + size), fill=colour)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
