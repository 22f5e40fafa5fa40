"""How much of a network's bare speed is left when descriptors are extracted from JPEG files.

Compares, in turn and in one run, images a second of (a) the network's forward pass on a ready
batch and (b) `extraction.global_descriptors` and `extraction.extract_local_features` on JPEG files
of the same size, decoding included.

    python3 benchmarks/extraction.py [--images 32] [--rounds 3]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from retrieval import devices, extraction
from retrieval.configs.describe import DelgConfig, ExtractConfig
from retrieval.configs.run import Resources
from retrieval.data.photo_sets import as_photos
from retrieval.features import FeatureStore, MadeBy
from retrieval.networks.delg import Delg


def write_photos(folder: Path, count: int, size: int) -> list[Path]:
    """JPEGs with the detail of photos: noise at several scales."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        layers = [rng.integers(0, 255, (size // s, size // s, 3), np.uint8) for s in (4, 16, 64)]
        scaled = [np.asarray(Image.fromarray(x).resize((size, size))) for x in layers]
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(np.mean(scaled, axis=0).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Time all in turn; print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    device = devices.choose_device("auto")
    network = DelgConfig(backbone=asked.backbone, reduction=True)
    model = Delg(network, "none").eval().to(device).to(memory_format=torch.channels_last)
    config, resources = ExtractConfig(), Resources(infer_batch_size=asked.batch)
    ready = torch.randn(asked.batch, 3, asked.size, asked.size, device=device)
    ready = ready.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(network: Callable[[torch.Tensor], object]) -> None:
        with devices.autocast(device, config.precision):
            for _ in range(asked.images // asked.batch):
                network(ready)
        if device.type == "cuda":
            torch.cuda.synchronize()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = as_photos(write_photos(folder, asked.images, asked.size))

        def local() -> None:
            anew = MadeBy("delg", {"time": time.perf_counter()}, {})
            store = FeatureStore.open(folder / "store", anew)
            extraction.extract_local_features(model, photos, store, config, None, resources)

        works: dict[str, Callable[[], object]] = {
            "backbone and global head, forward only": lambda: forward(model.global_descriptors),
            "global descriptors from JPEG": lambda: extraction.global_descriptors(
                model, photos, config, resources
            ),
            "backbone and local head, forward only": lambda: forward(model.local_maps),
            "local features from JPEG, stored": local,
        }
        forward(model.global_descriptors)  # warms up
        times: dict[str, list[float]] = {label: [] for label in works}
        for _ in range(asked.rounds):
            for label, work in works.items():
                times[label].append(seconds(work))
    rates = {label: asked.images / statistics.median(t) for label, t in times.items()}
    for label, rate in rates.items():
        print(f"{label.ljust(38)}{rate:8.2f} images/s")
    bare, with_files, bare_local, with_store = rates.values()
    print(f"global: {100 * with_files / bare:.0f} % of the bare network's throughput")
    print(f"local:  {100 * with_store / bare_local:.0f} % of the bare network's throughput")


if __name__ == "__main__":
    main()
