"""Photos to global descriptors, and photos to local features; a photo is decoded in a worker.

Photos of any mixture of sizes are grouped by size, so that they are run in batches. All functions
tell `progress.advance` how many photos are done.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Dataset

from retrieval import devices, progress
from retrieval.configs.describe import ExtractConfig
from retrieval.configs.run import Resources
from retrieval.data import images
from retrieval.data.images import Box
from retrieval.data.loading import load
from retrieval.data.photo_sets import Photo, contents
from retrieval.errors import InputError
from retrieval.features import FeatureStore, LocalFeatures
from retrieval.networks.interface import GlobalNetwork, Network
from retrieval.networks.pooling import l2_normalize
from retrieval.whitening import Projection

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# Of a photo as most sets have them: a batch holds no more than infer_batch_size times as many.
_PIXELS = 1_000_000


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

    def __init__(self, plans: Mapping[int, _Plan], most_pixels: int) -> None:
        self._plans, self._most_pixels = plans, most_pixels

    def __getitem__(self, row: int) -> tuple[int, torch.Tensor | str]:
        try:
            return row, _read(self._plans[row], self._most_pixels)
        except images.ImageError as error:
            return row, str(error)


def _read(plan: _Plan, most_pixels: int) -> torch.Tensor:
    """What a plan asks for, (3, H, W) uint8; ImageError if the image cannot be decoded."""
    whole = plan.box == (0, 0, *plan.full)
    pixels = images.read_image(plan.path, max(plan.target) if whole else None, most_pixels)
    if not whole:
        pixels = images.crop(pixels, plan.box)
    if pixels.shape[1::-1] != plan.target:
        pixels = images.resize(pixels, plan.target)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _plan(photo: Photo, config: ExtractConfig) -> _Plan:
    full = images.image_size(photo.path)
    try:
        box = (0, 0, *full) if photo.box is None else images.pixel_box(photo.box, full)
    except InputError as error:
        raise InputError(f"{photo.path}: {error}") from error
    target = config.target_size(full, (box[2] - box[0], box[3] - box[1]))
    return _Plan(photo.path, full, box, target)


def load_batches(
    photos: Sequence[Photo], config: ExtractConfig, resources: Resources
) -> Iterator[Batch]:
    """Decode the photos in workers and give them out in batches of one size, each photo once.

    A batch has at most as many pixels as ``infer_batch_size`` photos of a million, but at least one
    photo. Those that cannot be decoded are in no batch. After the sound ones have been given out
    they are an InputError that lists them all, or with ``config.skip_bad_images`` a warning each.
    """
    plans: dict[int, _Plan] = {}
    errors: list[str] = []
    for row, photo in enumerate(photos):
        try:
            plans[row] = _plan(photo, config)
        except images.ImageError as unreadable:
            errors.append(str(unreadable))
    progress.advance(len(errors))
    by_size: dict[tuple[int, int], list[int]] = {}
    for row, plan in plans.items():
        by_size.setdefault(plan.target, []).append(row)
    batches: list[list[int]] = []
    for size, rows in by_size.items():
        step = resources.infer_batch_size
        step = max(1, min(step, step * _PIXELS // math.prod(size)))
        batches += [rows[start : start + step] for start in range(0, len(rows), step)]
    largest = max((len(rows) * math.prod(plans[rows[0]].target) for rows in batches), default=0)
    decoded = _Photos(plans, config.max_pixels)
    for items in load(decoded, batches, resources.num_workers, 3 * largest):
        errors += [image for _, image in items if isinstance(image, str)]
        sound = [(row, image) for row, image in items if not isinstance(image, str)]
        if sound:
            rows = [row for row, _ in sound]
            yield Batch([plans[row] for row in rows], rows, torch.stack([x for _, x in sound]))
        progress.advance(len(items))
    if errors and not config.skip_bad_images:
        raise InputError(
            f"{len(errors)} photos could not be decoded (--skip_bad_images goes on without them):\n"
            + "\n".join(errors)
        )
    for error in errors:
        log.warning("skipped: %s", error)


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
    model: GlobalNetwork, photos: Sequence[Photo], config: ExtractConfig, resources: Resources
) -> np.ndarray:
    """(N, D) float32 descriptors of unit norm; over several scales their normalised mean (DELG).

    The row of a skipped photo is zero.
    """
    model.eval()
    result = np.zeros((len(photos), model.descriptor_dim), np.float32)
    for batch in load_batches(photos, config, resources):
        for part, found in in_memory(batch, lambda part: _descriptors_of(model, part, config)):
            result[part.rows] = found
    return result


def _descriptors_of(model: GlobalNetwork, batch: Batch, config: ExtractConfig) -> np.ndarray:
    device = next(model.parameters()).device
    pixels = _to_device(batch.pixels, device)
    mean = torch.zeros(len(pixels), model.descriptor_dim, device=device)
    for scale in config.scales:
        with devices.autocast(device, config.precision):
            mean += model.global_descriptors(_scaled(pixels, scale)).float()
    found = l2_normalize(mean).cpu().numpy()
    _check(found.any(axis=1) & np.isfinite(found).all(axis=1), batch, "descriptor")
    return found


def in_memory(batch: Batch, describe: Callable[[Batch], Result]) -> Iterator[tuple[Batch, Result]]:
    """What ``describe`` makes of a batch; where memory ends, of its halves, quarters …

    Raises InputError where one photo is too much.
    """
    try:
        yield batch, describe(batch)
        return
    except RuntimeError as error:
        if not devices.tells_of_full_memory(error):
            raise
        if len(batch.rows) == 1:
            height, width = batch.pixels.shape[-2:]
            raise InputError(
                f"{batch.plans[0].path}: the memory is too small for its {width}×{height} pixels; "
                "reduce it (--longest_side), or leave out the largest scales"
            ) from error
    half = len(batch.rows) // 2
    log.warning("%d photos at once are too much for the memory: %d are tried", 2 * half, half)
    for rows in (slice(half), slice(half, None)):
        part = Batch(batch.plans[rows], batch.rows[rows], batch.pixels[rows])
        yield from in_memory(part, describe)


def _check(sound: np.ndarray, batch: Batch, what: str) -> None:
    """InputError that names the first photo of a batch whose output is not ``sound``."""
    if not sound.all():
        path = batch.plans[int(sound.argmin())].path
        raise InputError(
            f"{path}: its {what} is all zeros, or has NaN or infinite values; check the network's "
            "weights, or use --precision fp32"
        )


class Description(NamedTuple):
    """A photo described: (D,) float32 of unit norm, and its local features."""

    descriptor: np.ndarray
    features: LocalFeatures


@torch.inference_mode()
def describe(
    network: Network, path: str | Path, config: ExtractConfig | None = None, box: Box | None = None
) -> Description:
    """The global descriptor and the local features of one photo, or of its ``box``.

    ImageError if it is unreadable.
    """
    network.eval()
    setting = config or ExtractConfig()
    plan = _plan(Photo(Path(path), str(path), box), setting)
    alone = Batch([plan], [0], _read(plan, setting.max_pixels)[None])

    def both(batch: Batch) -> Description:
        descriptor = _descriptors_of(network, batch, setting)[0]
        return Description(descriptor, local_features_of_batch(network, batch, setting)[0])

    ((_, found),) = in_memory(alone, both)
    return found


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
    """The strongest local features of each photo, over all of ``config.local_scales``."""
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
    _check(np.isfinite(strongest).all(axis=1), batch, "score of local features")
    vectors = descriptors.cpu().numpy()
    features = []
    for i, plan in enumerate(batch.plans):
        keep = strongest[i] >= config.min_score
        cell = chosen[i][keep]
        left, top, right, bottom = plan.box
        # From fractions of the part to pixels of the photo, whose first centre is (0, 0).
        keypoints = positions[cell] * (right - left, bottom - top) + (left - 0.5, top - 0.5)
        unit = (right - left) / plan.target[0]
        features.append(
            LocalFeatures(
                keypoints=keypoints.astype(np.float32),
                descriptors=vectors[i][keep],
                scores=strongest[i][keep],
                image_size=plan.full,
                scales=(sizes[cell] * unit).astype(np.float32),
                unit=unit,
            )
        )
    return features


@torch.inference_mode()
def local_descriptors(
    model: Network, photos: Sequence[Photo], config: ExtractConfig, resources: Resources
) -> np.ndarray:
    """All local descriptors of some photos in one array (N, d), to learn a projection on."""
    model.eval()
    samples = []
    for batch in load_batches(photos, config, resources):
        for _, found in in_memory(batch, lambda part: local_features_of_batch(model, part, config)):
            samples += [features.descriptors for features in found]
    return np.concatenate(samples)


@torch.inference_mode()
def extract_local_features(
    model: Network,
    photos: Sequence[Photo],
    store: FeatureStore,
    config: ExtractConfig,
    projection: Projection | None,
    resources: Resources,
) -> None:
    """`fill_store` with the local features of a network."""
    model.eval()
    fill_store(
        store,
        photos,
        config,
        resources,
        lambda batch: local_features_of_batch(model, batch, config, projection),
    )


def fill_store(
    store: FeatureStore,
    photos: Sequence[Photo],
    config: ExtractConfig,
    resources: Resources,
    describe: Callable[[Batch], list[LocalFeatures]],
) -> None:
    """Put what ``describe`` makes of all photos into ``store``; those that are there are kept.

    Photos that are skipped get no features, but their place.
    """
    missing = [photo for photo in photos if photo.name not in store]
    described = contents(missing)  # before they are read: what changes meanwhile is read again
    progress.advance(len(photos) - len(missing))
    skipped = set(range(len(missing)))
    with store.writer() as writer:
        for batch in load_batches(missing, config, resources):
            for part, found in in_memory(batch, describe):
                skipped -= set(part.rows)
                for row, features in zip(part.rows, found, strict=True):
                    writer.put(missing[row].name, features, described[row])
        for row in sorted(skipped):
            writer.put(missing[row].name, LocalFeatures.nothing(), described[row])
