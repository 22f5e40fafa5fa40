"""The protocol of a figure: all that it hangs on, from the weights to the versions of libraries."""

import importlib.metadata
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retrieval import checkpoint
from retrieval.configs.describe import ExtractConfig
from retrieval.data.photo_sets import PhotoSet
from retrieval.networks.interface import Network


def protocol(
    model: Network, photos: PhotoSet, extract: ExtractConfig, seed: int, source: str
) -> dict[str, Any]:
    """The stamp without which a figure is worth nothing."""
    how = {"infer_batch_size", "num_workers"}
    return {
        "weights": source,
        "weights_sha256": checkpoint.weights_hash(model.state_dict()),
        "network": asdict(model.config),
        "photos": str(photos.folder),
        "photos_fingerprint": photos.fingerprint(),
        "num_queries": len(photos.queries),
        "num_database": len(photos.database),
        "extraction": {name: v for name, v in asdict(extract).items() if name not in how},
        "seed": seed,
        "versions": versions(),
        "commit": commit(),
    }


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
