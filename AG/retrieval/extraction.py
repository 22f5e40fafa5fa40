"""Images to global descriptors, and images to local features; an image is decoded in a worker.

Images of any mixture of sizes are grouped by size, so that they are run in batches.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from retrieval import devices
from retrieval.configs.describe import ExtractConfig
from retrieval.data import images
from retrieval.data.images import Box
from retrieval.errors import InputError
from retrieval.features import FeatureStore, LocalFeatures
from retrieval.networks.interface import GlobalNetwork, Network
from retrieval.networks.pooling import l2_normalize
from retrieval.whitening import Projection


class _Plan(NamedTuple):
    """What to do with one image: its size, the part to take and the size to resize that to."""

    path: Path
    full: tuple[int, int]
    box: tuple[int, int, int, int]
    target: tuple[int, int]


class Batch(NamedTuple):
    """Images of one size: what was done to each, their rows, and pixels (B, 3, H, W) uint8."""

    plans: list[_Plan]
    rows: list[int]
    pixels: torch.Tensor


class _Photos(Dataset):
    """Decoded, cropped and resized images (3, H, W) uint8; of an unreadable one the error."""

    def __init__(self, plans: Sequence[_Plan]) -> None:
        self._plans = plans

    def __getitem__(self, row: int) -> tuple[int, torch.Tensor | str]:
        path, full, box, target = self._plans[row]
        whole = box == (0, 0, *full)
        try:
            pixels = images.read_image(path, max(target) if whole else None)
        except images.ImageError as error:
            return row, str(error)
        if not whole:
            pixels = images.crop(pixels, box)
        if pixels.shape[1::-1] != target:
            pixels = images.resize(pixels, target)
        return row, torch.from_numpy(pixels).permute(2, 0, 1)


def _make_plans(
    paths: Sequence[Path], boxes: Sequence[Box] | None, config: ExtractConfig
) -> list[_Plan]:
    plans = []
    for row, path in enumerate(paths):
        full = images.image_size(path)
        box = images.pixel_box(boxes[row], full) if boxes is not None else (0, 0, *full)
        target = config.target_size(full, (box[2] - box[0], box[3] - box[1]))
        plans.append(_Plan(path, full, box, target))
    return plans


def load_batches(
    paths: Sequence[Path],
    config: ExtractConfig,
    boxes: Sequence[Box] | None = None,
    skipped: list[str] | None = None,
) -> Iterator[Batch]:
    """Decode the images in workers and give them out in batches of one size, each image once.

    The error of an image that cannot be decoded is put into ``skipped``; with ``skipped=None`` an
    InputError that lists them all is raised after the sound ones have been given out.
    """
    plans = _make_plans(paths, boxes, config)
    by_size: dict[tuple[int, int], list[int]] = {}
    for row, plan in enumerate(plans):
        by_size.setdefault(plan.target, []).append(row)
    step = config.infer_batch_size
    batches = [rows[i : i + step] for rows in by_size.values() for i in range(0, len(rows), step)]
    loader = DataLoader(
        _Photos(plans),
        batch_sampler=batches,
        collate_fn=list,
        num_workers=min(config.num_workers, len(batches)),
        worker_init_fn=devices.quiet_worker,
    )
    errors: list[str] = [] if skipped is None else skipped
    for items in loader:
        errors.extend(image for _, image in items if isinstance(image, str))
        sound = [(row, image) for row, image in items if not isinstance(image, str)]
        if sound:
            rows = [row for row, _ in sound]
            yield Batch([plans[row] for row in rows], rows, torch.stack([x for _, x in sound]))
    if skipped is None and errors:
        raise InputError(
            f"{len(errors)} images could not be decoded (--skip_bad_images goes on without them):\n"
            + "\n".join(errors)
        )


def _scaled(pixels: torch.Tensor, scale: float) -> torch.Tensor:
    """(B, 3, H, W) resized by ``scale``, at least 32 pixels a side, channels last."""
    if scale != 1:
        height, width = (max(32, round(side * scale)) for side in pixels.shape[-2:])
        pixels = functional.interpolate(
            pixels, (height, width), mode="bilinear", antialias=scale < 1, align_corners=False
        )
    return pixels.contiguous(memory_format=torch.channels_last)


def _to_device(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    return images.normalize(pixels.to(device, non_blocking=True).float() / 255)


@torch.inference_mode()
def global_descriptors(
    model: GlobalNetwork,
    paths: Sequence[Path],
    config: ExtractConfig,
    boxes: Sequence[Box] | None = None,
    skipped: list[str] | None = None,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """(N, D) float32 descriptors of unit norm; over several scales their normalised mean (DELG).

    The row of a skipped image is zero. ``progress`` is called with the number of images done.
    """
    device = next(model.parameters()).device
    model.eval()
    result = np.zeros((len(paths), model.descriptor_dim), np.float32)
    for batch in load_batches(paths, config, boxes, skipped):
        pixels = _to_device(batch.pixels, device)
        mean = torch.zeros(len(pixels), model.descriptor_dim, device=device)
        for scale in config.scales:
            with devices.autocast(device, config.precision):
                mean += model.global_descriptors(_scaled(pixels, scale)).float()
        result[batch.rows] = l2_normalize(mean).cpu().numpy()
        if progress is not None:
            progress(len(batch.rows))
    return result


class _Cells(NamedTuple):
    """The cells of all scales of a batch: positions in [0, 1] (M, 2), the rest (B, M, ...)."""

    positions: torch.Tensor
    sizes: torch.Tensor
    scores: torch.Tensor
    descriptors: torch.Tensor


def _cells_at(model: Network, pixels: torch.Tensor, scale: float, config: ExtractConfig) -> _Cells:
    """Local descriptors and attention of one scale, with where on the image each cell looks."""
    scaled = _scaled(pixels, scale)
    with devices.autocast(pixels.device, config.precision):
        descriptors, attention = model.local_maps(scaled)
    # Positions as fractions of the side: cell_to_pixel gives pixel centres, hence the half.
    sides = scaled.shape[-1:-3:-1]
    x, y = (
        torch.from_numpy((model.backbone.spec.cell_to_pixel(np.arange(cells)) + 0.5) / side)
        for cells, side in zip(attention.shape[-1:-3:-1], sides, strict=True)
    )
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    positions = torch.stack([grid_x.flatten(), grid_y.flatten()], dim=1)
    stride = model.backbone.local_stride * pixels.shape[-1] / sides[0]
    sizes = torch.full((len(positions),), stride)
    return _Cells(
        positions,
        sizes,
        attention.flatten(1).float(),
        descriptors.flatten(2).transpose(1, 2).float(),
    )


def local_features_of_batch(
    model: Network, batch: Batch, config: ExtractConfig, projection: Projection | None = None
) -> list[LocalFeatures]:
    """The strongest local features of each image, over all of ``config.local_scales``."""
    pixels = _to_device(batch.pixels, next(model.parameters()).device)
    cells = [_cells_at(model, pixels, scale, config) for scale in config.local_scales]
    positions = torch.cat([scale.positions for scale in cells]).numpy()
    sizes = torch.cat([scale.sizes for scale in cells]).numpy()
    scores = torch.cat([scale.scores for scale in cells], dim=1)
    descriptors = torch.cat([scale.descriptors for scale in cells], dim=1)
    best = scores.topk(min(config.max_features, scores.shape[1]), dim=1)
    rows = best.indices[..., None].expand(-1, -1, descriptors.shape[-1])
    descriptors = descriptors.gather(1, rows)
    if projection is not None:
        descriptors = projection(descriptors)
    chosen, strongest = best.indices.cpu().numpy(), best.values.cpu().numpy()
    vectors = descriptors.cpu().numpy()
    features = []
    for i, plan in enumerate(batch.plans):
        keep = strongest[i] >= config.min_score
        kept = chosen[i][keep]
        left, top, right, bottom = plan.box
        keypoints = positions[kept] * (right - left, bottom - top) + (left - 0.5, top - 0.5)
        scale = sizes[kept] * (right - left) / plan.target[0]
        features.append(
            LocalFeatures(
                keypoints.astype(np.float32),
                vectors[i][keep],
                strongest[i][keep],
                plan.full,
                scale.astype(np.float32),
            )
        )
    return features


@torch.inference_mode()
def local_descriptors(
    model: Network,
    paths: Sequence[Path],
    config: ExtractConfig,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """All local descriptors of some images in one array (N, d), to learn a projection on."""
    model.eval()
    samples = []
    for batch in load_batches(paths, config):
        samples += [
            features.descriptors for features in local_features_of_batch(model, batch, config)
        ]
        if progress is not None:
            progress(len(batch.rows))
    return np.concatenate(samples)


@torch.inference_mode()
def extract_local_features(
    model: Network,
    paths: Sequence[Path],
    ids: Sequence[str],
    store: FeatureStore,
    config: ExtractConfig,
    boxes: Sequence[Box] | None = None,
    projection: Projection | None = None,
    skipped: list[str] | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Put the local features of all images into ``store`` under ``ids``; those there are kept."""
    model.eval()
    missing = [row for row, name in enumerate(ids) if name not in store]
    if progress is not None:
        progress(len(ids) - len(missing))
    part = [paths[row] for row in missing]
    part_boxes = None if boxes is None else [boxes[row] for row in missing]
    with store.writer() as writer:
        for batch in load_batches(part, config, part_boxes, skipped):
            found = local_features_of_batch(model, batch, config, projection)
            for row, features in zip(batch.rows, found, strict=True):
                writer.put(ids[missing[row]], features)
            if progress is not None:
                progress(len(batch.rows))
