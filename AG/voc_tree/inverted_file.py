"""The inverted file: for each visual word the images that have it, with counts or signatures.

Images are added without building it anew: what is added becomes a segment of its own, and segments
of similar size are merged.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Entries whose distances are taken at a time: what stays in a core's cache.
_BLOCK = 1 << 16


class Postings(NamedTuple):
    """The words of one image: m entries.

    words (m,) int64; counts (m,): how often; signatures (m, W) uint64, W = 0 for none.
    """

    words: np.ndarray
    counts: np.ndarray
    signatures: np.ndarray


@dataclass(frozen=True)
class Hits:
    """Entries met by the terms of a query.

    term, image (M,) int32: row of the query, number of the image; count (M,) uint16, or None where
    all are 1; distance (M,) uint8 between the signatures, or None without signatures.
    """

    term: np.ndarray
    image: np.ndarray
    count: np.ndarray | None
    distance: np.ndarray | None


@dataclass(frozen=True)
class Segment:
    """Entries sorted by word, then image: those of words[i] are starts[i] to starts[i + 1].

    words (u,) int32 ascending; starts (u + 1,) int64; images (n,) int32; counts (n,) uint16, or
    None where all are 1; signatures (W, n) uint64.
    """

    words: np.ndarray
    starts: np.ndarray
    images: np.ndarray
    counts: np.ndarray | None
    signatures: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        arrays = (self.words, self.starts, self.images, self.counts, self.signatures)
        return sum(array.nbytes for array in arrays if array is not None)

    def word_of_entry(self) -> np.ndarray:
        """(n,) the word of each entry."""
        return np.repeat(self.words, np.diff(self.starts))

    def count_of_entry(self) -> np.ndarray:
        """(n,) the count of each entry."""
        return np.ones(len(self), np.uint16) if self.counts is None else self.counts

    def hits(self, words: np.ndarray) -> Hits:
        """All entries of each of the words (m,) of a query."""
        terms, starts, sizes = self._lists(words)
        entries = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        return Hits(
            np.repeat(terms, sizes),
            np.concatenate([self.images[:0], *(self.images[each] for each in entries)]),
            None
            if self.counts is None
            else np.concatenate([self.counts[:0], *(self.counts[each] for each in entries)]),
            None,
        )

    def near_hits(self, words: np.ndarray, signatures: np.ndarray, most: int) -> Hits:
        """The entries of each word (m,) within ``most`` bits of its signature (m, W)."""
        terms, starts, sizes = self._lists(words)
        term, entry, distance = [terms[:0]], [starts[:0]], [np.empty(0, np.uint8)]
        for part in _parts(sizes):
            ends = np.cumsum(sizes[part])
            begins = ends - sizes[part]
            found = self._distances(terms[part], starts[part], sizes[part], signatures)
            near = np.flatnonzero(found <= most)
            row = np.searchsorted(ends, near, side="right")
            term.append(terms[part][row])
            entry.append(near + (starts[part] - begins)[row])
            distance.append(found[near])
        entries = np.concatenate(entry)
        return Hits(
            np.concatenate(term),
            self.images[entries],
            None if self.counts is None else self.counts[entries],
            np.concatenate(distance),
        )

    def _distances(
        self, terms: np.ndarray, starts: np.ndarray, sizes: np.ndarray, signatures: np.ndarray
    ) -> np.ndarray:
        """uint8: the distances of each term to the entries of its list, one list after another."""
        differing = np.empty(int(sizes.sum()), np.uint64)
        total = np.zeros(len(differing), np.uint8)
        spans = list(zip(terms.tolist(), starts.tolist(), sizes.tolist(), strict=True))
        for plane, own in zip(self.signatures, signatures.T, strict=True):
            begin = 0
            for term, start, size in spans:
                end = begin + size
                np.bitwise_xor(plane[start : start + size], own[term], out=differing[begin:end])
                begin = end
            total += np.bitwise_count(differing)
        return total

    def _lists(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The terms whose word has entries, where these start, and how many they are."""
        if len(self.words) == 0:
            return np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64)
        row = np.minimum(np.searchsorted(self.words, words), len(self.words) - 1)
        terms = np.flatnonzero(self.words[row] == words)
        row = row[terms]
        return terms.astype(np.int32), self.starts[row], self.starts[row + 1] - self.starts[row]


def _parts(sizes: np.ndarray) -> list[slice]:
    """Runs of lists of about _BLOCK entries together."""
    block = np.cumsum(sizes) // _BLOCK
    edges = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(sizes)]
    return [slice(first, last) for first, last in itertools.pairwise(edges) if first < last]


def make_segment(
    words: np.ndarray, images: np.ndarray, counts: np.ndarray, signatures: np.ndarray
) -> Segment:
    """A segment of n entries in any order: words, images, counts (n,); signatures (n, W)."""
    order = np.lexsort((images, words))
    distinct, starts = np.unique(words[order], return_index=True)
    return Segment(
        words=distinct.astype(np.int32),
        starts=np.append(starts, len(words)),
        images=images[order].astype(np.int32),
        counts=None if np.all(counts == 1) else counts[order].astype(np.uint16),
        signatures=np.ascontiguousarray(signatures[order].T),
    )


def _merged(*segments: Segment) -> Segment:
    """One segment of the entries of several."""
    return make_segment(
        np.concatenate([segment.word_of_entry() for segment in segments]),
        np.concatenate([segment.images for segment in segments]),
        np.concatenate([segment.count_of_entry() for segment in segments]),
        np.concatenate([segment.signatures.T for segment in segments]),
    )


class InvertedFile:
    """Images numbered in the order in which they were added.

    num_features (number of images,) int64: of each. idf (num_words,) float32: what `refresh_idf`
    found last; zeros before.
    """

    def __init__(self, num_words: int) -> None:
        self.num_words = num_words
        self.idf = np.zeros(num_words, np.float32)
        self.segments: list[Segment] = []
        self.num_features = np.zeros(0, np.int64)
        self._norms: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """The number of images that are in it."""
        return len(self.num_features)

    @property
    def nbytes(self) -> int:
        """Bytes of memory of all entries."""
        return sum(segment.nbytes for segment in self.segments)

    def add(self, images: Sequence[Postings]) -> np.ndarray:
        """Add images, and return their numbers. The idf stays as it is until refreshed."""
        numbers = np.arange(len(self), len(self) + len(images))
        sizes = np.array([len(postings.words) for postings in images], np.int64)
        features = [int(postings.counts.sum()) for postings in images]
        self.num_features = np.append(self.num_features, np.array(features, np.int64))
        if sizes.sum():
            words, counts, signatures = (np.concatenate(part) for part in zip(*images, strict=True))
            self.add_segment(make_segment(words, np.repeat(numbers, sizes), counts, signatures))
        self._norms = {}
        return numbers

    def add_segment(self, segment: Segment) -> None:
        """Take in a segment, and merge it with smaller ones so that few are left."""
        self.segments.append(segment)
        while len(self.segments) > 1 and len(self.segments[-2]) <= 2 * len(self.segments[-1]):
            newer, older = self.segments.pop(), self.segments.pop()
            self.segments.append(_merged(older, newer))

    def refresh_idf(self) -> None:
        """Set idf = log(N / number of images with the word), 0 for words of no image."""
        images_with = np.zeros(self.num_words, np.int64)
        for segment in self.segments:
            words = segment.word_of_entry()
            first = np.ones(len(words), bool)  # of the entries of one word and image
            first[1:] = (words[1:] != words[:-1]) | (segment.images[1:] != segment.images[:-1])
            images_with += np.bincount(words[first], minlength=self.num_words)
        idf = np.log(max(len(self), 1) / np.maximum(images_with, 1))
        self.idf = np.where(images_with > 0, idf, 0).astype(np.float32)
        self._norms = {}

    def norm(self, power: int) -> np.ndarray:
        """(number of images,) float32: Σ (count · idf) ** power over the entries of each image."""
        if power not in self._norms:
            total = np.zeros(len(self))
            for segment in self.segments:
                weight = self.idf[segment.word_of_entry()]
                weight = weight if segment.counts is None else weight * segment.counts
                total += np.bincount(segment.images, weight**power, minlength=len(total))
            self._norms[power] = total.astype(np.float32)
        return self._norms[power]
