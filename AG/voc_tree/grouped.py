"""Many small groups of rows of one matrix, worked on together: padded batches and their k-means."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

# Rows of a padded batch, padding included: what keeps a core busy and still fits its cache.
_BATCH_ROWS = 1 << 16


class Groups(NamedTuple):
    """Some groups padded to one length: group numbers (R,), rows (R, L), valid (R, L) bool."""

    group: torch.Tensor
    rows: torch.Tensor
    valid: torch.Tensor


def padded_groups(
    group_of_row: torch.Tensor, num_groups: int, at_least: int = 1, at_most: int | None = None
) -> Iterator[Groups]:
    """Sort rows by group and give out the groups in batches of similar size.

    group_of_row: (n,) int64. Groups of fewer than ``at_least`` rows are left out, of larger ones
    the first ``at_most`` rows are taken.
    """
    order = torch.argsort(group_of_row, stable=True)
    sizes = torch.bincount(group_of_row, minlength=num_groups)
    starts = sizes.cumsum(0) - sizes
    taken = sizes if at_most is None else sizes.clamp(max=at_most)
    groups = torch.argsort(taken, stable=True)
    groups = groups[taken[groups] >= at_least]
    for first, last in _similar(taken[groups].tolist()):
        chosen = groups[first:last]
        column = torch.arange(int(taken[chosen[-1]]), device=order.device)
        valid = column < taken[chosen, None]
        places = torch.where(valid, starts[chosen, None] + column, starts[chosen, None])
        yield Groups(chosen, order[places], valid)


def _similar(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of ascending sizes whose padded batch stays small, and mostly not padding."""
    first = 0
    for last, size in enumerate(sizes):
        large = size * (last + 1 - first) > _BATCH_ROWS or size > 2 * sizes[first] + 8
        if last > first and large:
            yield first, last
            first = last
    if sizes:
        yield first, len(sizes)


def kmeans(points: torch.Tensor, valid: torch.Tensor, k: int, iterations: int) -> torch.Tensor:
    """Lloyd's k-means of R sets at once: points (R, L, d) where valid (R, L); (R, k, d) centroids.

    Each set has at least k points, in random order: the first k are where it starts. A centroid
    that loses all its points moves to the point that is farthest from its own.
    """
    num_sets, _, d = points.shape
    flat = points.reshape(-1, d)
    ones = valid.to(points.dtype).flatten()
    cell = torch.arange(num_sets, device=points.device)[:, None] * k
    centroids, labels = points[:, :k].clone(), None
    for _ in range(iterations):
        distances = squared_distances(points, centroids)
        nearest, found = distances.min(dim=2)
        if labels is not None and torch.equal(labels, found):
            break
        labels = found
        cells = (labels + cell).flatten()
        counts = flat.new_zeros(num_sets * k).index_add_(0, cells, ones)
        sums = flat.new_zeros(num_sets * k, d).index_add_(0, cells, flat * ones[:, None])
        means = sums / counts.clamp(min=1)[:, None]
        centroids = means.view(num_sets, k, d)
        _reseed(centroids, counts.view(num_sets, k) == 0, points, nearest, valid)
    return centroids


def _reseed(
    centroids: torch.Tensor,
    empty: torch.Tensor,
    points: torch.Tensor,
    nearest: torch.Tensor,
    valid: torch.Tensor,
) -> None:
    """Move the i-th empty centroid of a set to its i-th farthest point, in place."""
    sets, places = torch.nonzero(empty, as_tuple=True)
    if len(sets) == 0:
        return
    distance = nearest + (points * points).sum(dim=2)
    farthest = distance.masked_fill(~valid, -torch.inf).topk(empty.shape[1], dim=1).indices
    turn = (empty.cumsum(dim=1) - 1)[sets, places]
    centroids[sets, places] = points[sets, farthest[sets, turn]]


def squared_distances(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """(R, L, k): squared distances of points (R, L, d) to centroids (R, k, d), less |point|²."""
    norms = (centroids * centroids).sum(dim=2)[:, None, :]
    return torch.baddbmm(norms, points, centroids.transpose(1, 2), alpha=-2)
