"""What the docstrings of the running Python's standard library say, as chats and as texts to classify; no network.

The sources are parsed, never run or imported, and walked in sorted order: the same Python gives the same bytes.
"""

from __future__ import annotations

import ast
import functools
import inspect
import platform
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from toolkit.data.sets.rows import Row, Splits, share

LICENCE = "PSF-2.0, as Python"
HELD_OUT = 0.1
"""Share of the top-level modules whose docstrings are test rows."""
_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "ensurepip"}
_MASK = "***"
_NUM_PACKAGES = 10


@dataclass(frozen=True)
class Documented:
    """A public module, class or function of the standard library that has a docstring."""

    package: str
    """Top-level module."""
    name: str
    """Dotted, from the top-level module on."""
    signature: str | None
    """Parameters as written, without self; None for modules and classes."""
    text: str
    """The docstring, dedented."""

    @property
    def is_class(self) -> bool:
        return self.signature is None and self.name.rpartition(".")[2][:1].isupper()


@dataclass(frozen=True)
class PythonLibrary:
    """The sources of the standard library of the Python that runs."""

    download_bytes: int = 0

    @property
    def pin(self) -> str:
        """Which Python it is."""
        return f"Python {platform.python_version()}"

    @property
    def facts(self) -> tuple[str, ...]:
        """What the README beside the rows says of it."""
        return (f"Source: docstrings of the standard library of {self.pin}, read on this host.",)

    def fetch(self, console: Console) -> Path:
        """The directory of the sources."""
        return Path(sysconfig.get_paths()["stdlib"])


LIBRARY = PythonLibrary()


@dataclass(frozen=True)
class Answered:
    """A question about a function or a class, and its answer."""

    package: str
    """Top-level module of what is asked about."""
    question: str
    answer: str
    """The first paragraph of the docstring, of 4 to 60 words."""


def answered(root: Path) -> Iterator[Answered]:
    """Every function and class of the library in `root` whose docstring begins with prose; no answer occurs twice."""
    seen: set[str] = set()
    for item in standard_library(root):
        answer = _summary(item.text)
        if answer is None or answer.lower() in seen or not (item.is_class or item.signature is not None):
            continue
        seen.add(answer.lower())
        if item.is_class:
            question = f"What is the Python class `{item.name}`?"
        else:
            question = f"What does the Python function `{item.name}({item.signature})` do?"
        yield Answered(item.package, question, answer)


def instructions(root: Path) -> Splits:
    """{"messages"}: a question and its answer.

    The question names a function with its parameters, or a class; the answer is its docstring's first paragraph.
    About one top-level module in ten is held out, and no answer occurs twice.
    """
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    for item in answered(root):
        messages = [{"role": "user", "content": item.question}, {"role": "assistant", "content": item.answer}]
        rows[split_of(item.package)].append({"messages": messages})
    return rows


def split_of(package: str) -> str:
    """The split of all that is in the top-level module `package`."""
    return "test" if share(f"modules {package}") < HELD_OUT else "train"


def packages(root: Path) -> Splits:
    """{"text", "label"}: a docstring, and the package it is from.

    The ten packages with the most docstrings, each cut to at most one and a half times the smallest; a package's own
    name is masked in its texts. About one text in seven is held out.
    """
    by_package: dict[str, dict[str, str]] = {}
    for item in standard_library(root):
        text = " ".join(item.text.split()[:80])
        masked = re.sub(re.escape(item.package), _MASK, text, flags=re.IGNORECASE)
        if len(masked.split()) >= 4:
            by_package.setdefault(item.package, {})[masked.lower()] = masked
    shared = {key for key, count in Counter(key for texts in by_package.values() for key in texts).items() if count > 1}
    texts = {
        package: [text for key, text in found.items() if key not in shared] for package, found in by_package.items()
    }
    chosen = sorted(texts, key=lambda package: (-len(texts[package]), package))[:_NUM_PACKAGES]
    limit = 3 * len(texts[chosen[-1]]) // 2
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    for package in sorted(chosen):
        # Ordered by hash, so that the cut and the held-out share are spread over the package's files.
        for text in sorted(texts[package], key=share)[:limit]:
            rows["test" if share(f"held out {text}") < 1 / 7 else "train"].append({"text": text, "label": package})
    return rows


@functools.cache
def standard_library(root: Path) -> tuple[Documented, ...]:
    """Everything public in the library whose sources are in `root` that has a docstring, in a fixed order.

    Kept, since every data set that a program makes of it begins here: a few thousand short texts.
    """
    return tuple(_public(root))


def _public(root: Path) -> Iterator[Documented]:
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        parts = path.relative_to(root).with_suffix("").parts
        # config-3.11-x86_64-linux-gnu and the like hold the build's own files.
        if _SKIPPED.isdisjoint(parts) and not any(part.startswith("_") or "-" in part for part in parts[:-1]):
            dotted = parts[:-1] if parts[-1] == "__init__" else parts
            if dotted and not dotted[-1].startswith("_"):
                yield from _documented(path, ".".join(dotted))


def _documented(path: Path, module: str) -> Iterator[Documented]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in strings are none of our business
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:
            return
    package = module.partition(".")[0]
    for name, node in _definitions(tree, module):
        text = ast.get_docstring(node)
        if text:
            signature = None if isinstance(node, ast.Module | ast.ClassDef) else _parameters(node.args)
            yield Documented(package, name, signature, inspect.cleandoc(text))


_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(node: _Definition, name: str) -> Iterator[tuple[str, _Definition]]:
    """`node` and the public classes and functions in it, but not those inside functions."""
    yield name, node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield from _definitions(child, f"{name}.{child.name}")


def _parameters(arguments: ast.arguments) -> str:
    written = ast.unparse(arguments)
    return re.sub(r"^(self|cls)(, /)?(, |$)", "", written)


def _summary(text: str) -> str | None:
    """The first paragraph as one sentence or more; None when it is no prose or too long to learn."""
    paragraph = " ".join(re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0].split())
    paragraph = re.sub(r"^\w+ --? ", "", paragraph)  # "Name - what it is"
    words = paragraph.split()
    prose = paragraph[:1].isalpha() and "->" not in paragraph and ">>>" not in paragraph
    if not prose or not 4 <= len(words) <= 60 or not re.fullmatch(r"[A-Za-z'/-]+[,:]?", words[0]):
        return None
    paragraph = paragraph[0].upper() + paragraph[1:]
    return paragraph if paragraph[-1] in ".!?" else paragraph.rstrip(":;,") + "."
