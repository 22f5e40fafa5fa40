"""The protocol of a figure: all that it hangs on, from the weights to the versions of libraries."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from retrieval import checkpoint, devices
from retrieval.configs.describe import ExtractConfig
from retrieval.data.photo_sets import PhotoSet
from retrieval.networks.interface import Network


@dataclass(frozen=True)
class Protocol:
    """The stamp without which a figure is worth nothing.

    photos:       the folder of the photo set; fingerprint: its `PhotoSet.fingerprint`.
    settings:     of the method (weights, network, extraction; features, tree, score; re-ranking),
                  as plain values.
    versions:     of Python and of the packages that can move a figure.
    commit:       of this code, with ``+changes`` if it is not exactly that; or ``unknown``.
    """

    photos: str
    fingerprint: str
    num_queries: int
    num_database: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str


def protocol_of(photos: PhotoSet, settings: Mapping[str, Any]) -> Protocol:
    """The protocol of figures on ``photos`` by ``settings``, with this code here and now."""
    return Protocol(
        photos=str(photos.folder),
        fingerprint=photos.fingerprint(),
        num_queries=len(photos.queries),
        num_database=len(photos.database),
        settings=dict(settings),
        versions=versions(),
        commit=commit(),
    )


def network_settings(model: Network, extract: ExtractConfig, weights: str) -> dict[str, Any]:
    """What the descriptors of a network hang on; ``weights`` says where it has them from."""
    device = next(model.parameters()).device
    extract = replace(extract, precision=devices.settled(extract.precision, device))
    return {
        "weights": weights,
        "weights_sha256": checkpoint.weights_hash(model.state_dict()),
        "network": asdict(model.config),
        "extraction": asdict(extract),
    }


def extraction_of(protocol: Protocol) -> ExtractConfig:
    """How the photos of a network's evaluation were read."""
    values = dict(protocol.settings["extraction"])
    values |= {name: tuple(values[name]) for name in ("scales", "local_scales")}
    return ExtractConfig(**values)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can move a figure."""
    names = ("torch", "torchvision", "numpy", "faiss-cpu", "opencv-python-headless", "pillow")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed under this name"
    return found


def commit() -> str:
    """The commit of this code, with ``+changes`` if it is not exactly that; or ``unknown``."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:  # no git on this machine
        return "unknown"
    return (head + ("+changes" if changed else "")) or "unknown"
