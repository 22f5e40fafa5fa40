"""Nearest neighbours between the local descriptors of two images, and of one image and many.

The work is one product of the two descriptor sets and one pass each for the maxima of its rows and
columns; on a CPU the passes would cost as much as the product if they also kept indices, so only
the rows keep them. The product is taken in 8-bit integers by default: descriptors of unit norm lose
little by it (of the geometrically verified matches of real photos 98-99 % stay the same), integer
sums do not depend on the machine, the blocking or the number of threads, and they cost a fifth.

Binary descriptors are codes, (N, bits / 8) uint8: faiss counts the bits in which two agree, and
that count takes the product's place.
"""

from collections.abc import Iterator, Sequence

import faiss
import numpy as np
import torch

from retrieval.configs.rank import MatchConfig
from retrieval.errors import InputError

_INT8_MAX = 127
# Elements of the similarity matrix at a time: what a core's cache still serves well.
_BLOCK = 1 << 20
# Elements of double precision at a time that stay in a core's cache.
_CACHED = 1 << 15


def match_descriptors(query: np.ndarray, database: np.ndarray, config: MatchConfig) -> np.ndarray:
    """Match the (Nq, d) descriptors of one image with the (Nd, d) of another, all of unit norm.

    Or their binary codes, (Nq, bits / 8) and (Nd, bits / 8) uint8.
    Returns (M, 2) int64 rows [query row, database row] in the order of the query rows. Of equal
    neighbours the lowest row wins. Either set may be empty.
    Raises InputError for descriptors of different dimensions or forms, and for values that are not
    finite.
    """
    return match_many(query, [database], config)[0]


def match_many(
    query: np.ndarray, databases: Sequence[np.ndarray], config: MatchConfig
) -> list[np.ndarray]:
    """Match one image's descriptors with those of many: what `match_descriptors` gives of each.

    Small sets are stacked, so that one product serves many of them. Thread-safe; the products run
    outside the interpreter lock.
    """
    query = _checked(query)
    databases = [_checked(database) for database in databases]
    for database in databases:
        _check_pair(query, database)
    matches: list[np.ndarray] = []
    scaled_query = _scaled(query, config)
    for stack in _stacks(databases, len(query)):
        matches += _match_stack(query, scaled_query, stack, config)
    return matches


def match_distances(query: np.ndarray, database: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """The (M,) float64 L2 distances of (M, 2) matches [query row, database row].

    Of binary codes that of unit vectors at the angle θ which the Hamming distance h tells of:
    random hyperplanes part two vectors with probability θ / π = h / bits (Charikar, "Similarity
    Estimation Techniques from Rounding Algorithms", STOC 2002), so 2 sin(π h / (2 bits)).

    Those below a threshold are what `match_descriptors` finds with that ``max_distance``, to the
    bit.
    """
    if query.dtype == np.uint8:
        differing = np.bitwise_count(query[matches[:, 0]] ^ database[matches[:, 1]])
        return 2 * np.sin(np.pi / 2 * differing.sum(axis=1) / max(1, 8 * query.shape[1]))
    squared = np.empty(len(matches))
    step = max(1, _CACHED // max(1, query.shape[1]))
    for start in range(0, len(matches), step):
        rows, columns = matches[start : start + step].T
        difference = query[rows].astype(np.float32).astype(np.float64)
        difference -= database[columns].astype(np.float32)
        np.multiply(difference, difference, out=difference)
        difference.sum(axis=1, out=squared[start : start + step])
    return np.sqrt(squared)


def _check_pair(query: np.ndarray, database: np.ndarray) -> None:
    """InputError for two sets that cannot be matched; an empty one can, of whatever kind."""
    if len(query) == 0 or len(database) == 0:
        return
    if query.dtype != database.dtype:
        raise InputError("one photo's descriptors are binary codes, the other's are not")
    if query.shape[1] != database.shape[1]:
        what = "bytes" if query.dtype == np.uint8 else "dimensions"
        raise InputError(
            f"query descriptors have {query.shape[1]} {what}, database descriptors"
            f" {database.shape[1]}: extract both with one network and one setting"
        )


def _checked(descriptors: np.ndarray) -> np.ndarray:
    """The descriptors as (N, d) float32, or the codes as they are."""
    descriptors = np.asarray(descriptors)
    if descriptors.ndim != 2:
        raise InputError(f"descriptors must be (N, d), not {descriptors.shape}")
    return as_single(descriptors)


def as_single(descriptors: np.ndarray) -> np.ndarray:
    """Descriptors as contiguous float32, the same array if they are so already; codes stay so."""
    if descriptors.dtype == np.uint8:
        return np.ascontiguousarray(descriptors)
    if descriptors.dtype == np.float16 and descriptors.flags.writeable:
        # As stores keep them; torch widens halves at four times the speed of NumPy.
        return torch.from_numpy(np.ascontiguousarray(descriptors)).float().numpy()
    return np.ascontiguousarray(descriptors, dtype=np.float32)


def _scaled(descriptors: np.ndarray, config: MatchConfig) -> np.ndarray:
    """The factor that the products see: the descriptors themselves, or int8 at one scale per set.

    One scale per set (not per row) keeps the order of all the similarities of two sets.
    """
    if descriptors.dtype == np.uint8:
        return descriptors
    largest = np.abs(descriptors).max(initial=0)
    if not np.isfinite(largest):
        raise InputError("descriptors have NaN or infinite values: extract them again")
    if config.precision == "float32":
        return descriptors
    scale = _INT8_MAX / largest if largest > 0 else 1.0
    return np.rint(descriptors * np.float32(scale)).astype(np.int8)


def _stacks(databases: list[np.ndarray], num_query: int) -> Iterator[list[np.ndarray]]:
    """Runs of consecutive sets whose stacked (padded) similarity matrix stays within a block."""
    stack: list[np.ndarray] = []
    longest = 0
    for database in databases:
        longest = max(longest, len(database))
        if stack and num_query * longest * (len(stack) + 1) > _BLOCK:
            yield stack
            stack, longest = [], len(database)
        stack.append(database)
    if stack:
        yield stack


def _match_stack(
    query: np.ndarray, scaled_query: np.ndarray, stack: list[np.ndarray], config: MatchConfig
) -> list[np.ndarray]:
    """Match one set with C sets by a single product."""
    lengths = np.array([len(database) for database in stack])
    longest = int(lengths.max())
    if len(query) == 0 or longest == 0:
        return [np.empty((0, 2), np.int64) for _ in stack]
    scaled = np.zeros((len(stack), longest, query.shape[1]), scaled_query.dtype)
    for padded, database in zip(scaled, stack, strict=True):
        if len(database):
            padded[: len(database)] = _scaled(database, config)

    similarity = _product(scaled_query, scaled.reshape(-1, query.shape[1]))
    similarity = similarity.reshape(len(query), len(stack), longest)  # (Nq, C, n)
    lowest = -np.inf if similarity.dtype == np.float32 else np.iinfo(np.int32).min
    for c, length in enumerate(lengths):  # a row of padding is nobody's neighbour
        if length < longest:
            similarity[:, c, length:] = lowest

    nearest = similarity.argmax(axis=2)  # (Nq, C)
    kept = np.broadcast_to(lengths > 0, nearest.shape)
    if config.rule == "mutual":
        kept = kept & _mutual(similarity, nearest)
    second = None
    if config.ratio is not None:
        np.put_along_axis(similarity, nearest[..., None], lowest, axis=2)
        second = similarity.argmax(axis=2)

    matches = []
    for c, database in enumerate(stack):
        rows = np.flatnonzero(kept[:, c])
        runner_up = None if second is None or len(database) < 2 else second[rows, c]
        pairs = np.stack([rows, nearest[rows, c]], axis=1).astype(np.int64, copy=False)
        matches.append(pairs[_passes(query, database, pairs, runner_up, config)])
    return matches


def _product(query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """All inner products (Nq, Nd), float32 or int32; of int8 factors exact on every machine.

    Of codes the number of bits in which they agree: those that differ from the other's complement.
    """
    if query.dtype == np.uint8:
        return _differing_bits(query, ~database)
    # float32 holds every integer below 2**24, so that its product of int8 factors is exact, too.
    exact_in_float32 = _INT8_MAX**2 * query.shape[1] < 2**24
    if query.dtype == np.int8 and exact_in_float32 and not _has_fast_int8():
        return (torch.from_numpy(query).float() @ torch.from_numpy(database).float().T).numpy()
    left, right = torch.from_numpy(query), torch.from_numpy(database).T
    return (torch._int_mm(left, right) if query.dtype == np.int8 else left @ right).numpy()


def _differing_bits(query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """The Hamming distances (Nq, Nd) int32 of codes (Nq, bits / 8) and (Nd, bits / 8) uint8."""
    distances = np.empty((len(query), len(database)), np.int32)
    pointers = [faiss.swig_ptr(each) for each in (query, database, distances)]
    count = vars(faiss)["hammings"]  # which faiss's stubs leave out
    count(*pointers[:2], len(query), len(database), query.shape[1], pointers[2])
    return distances


def _has_fast_int8() -> bool:
    """Whether torch's product of int8 matrices is the fast one here."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def _mutual(similarity: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Which query rows (Nq, C) are nearest to their nearest database row.

    The maxima of the columns suffice: a match is mutual if it attains that of its column, and of
    several query rows that do, the first is taken.
    """
    columns = np.arange(similarity.shape[1])
    best = similarity.max(axis=0)  # (C, n)
    own = np.take_along_axis(similarity, nearest[..., None], axis=2)[..., 0]
    attained = own == best[columns, nearest]
    row, c = np.nonzero(attained)
    _, first = np.unique(c * similarity.shape[2] + nearest[row, c], return_index=True)
    attained[:] = False
    attained[row[first], c[first]] = True
    return attained


def _passes(
    query: np.ndarray,
    database: np.ndarray,
    pairs: np.ndarray,
    runner_up: np.ndarray | None,
    config: MatchConfig,
) -> np.ndarray:
    """Which matches pass the tests on their exact distances. (M,) bool."""
    passes = np.ones(len(pairs), bool)
    if config.max_distance is None and runner_up is None:
        return passes
    distance = match_distances(query, database, pairs)
    if config.max_distance is not None:
        passes &= distance < config.max_distance
    if runner_up is not None and config.ratio is not None:
        second = match_distances(query, database, np.stack([pairs[:, 0], runner_up], axis=1))
        passes &= distance < config.ratio * second
    return passes
