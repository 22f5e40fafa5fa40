"""How a database is ranked: matching, verification, re-ranking, visual words, expansion."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np

from retrieval.errors import InputError

Rule = Literal["mutual", "one_way"]


MatchPrecision = Literal["int8", "float32"]


@dataclass(frozen=True)
class MatchConfig:
    """How two descriptor sets are matched.

    rule:         "mutual": each is the other's nearest neighbour. "one_way": the nearest database
                  descriptor of every query descriptor.
    ratio:        keep a match only if its distance is below `ratio` times the distance to the
                  second nearest database descriptor (Lowe's test); None: no such test.
    max_distance: keep a match only if its L2 distance is below this; None: no bound. S1 used
                  "one_way" with 0.6-0.65.
    precision:    of the products that find the neighbours: "int8" is fast, and may take one of two
                  nearly equal neighbours for the other; "float32" is exact. The distances in both
                  tests are always exact.
    """

    rule: Rule = "mutual"
    ratio: float | None = None
    max_distance: float | None = None
    precision: MatchPrecision = "int8"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("rule", self.rule, get_args(Rule)),
            ("precision", self.precision, get_args(MatchPrecision)),
        ):
            if value not in known:
                raise InputError(f"matching {name} {value!r}: expected one of {', '.join(known)}")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise InputError(f"matching ratio {self.ratio}: expected a number in (0, 1], or none")
        if self.max_distance is not None and not self.max_distance > 0:
            raise InputError(f"matching distance {self.max_distance}: expected a number above 0")


Backend = Literal["opencv", "skimage", "poselib", "pycolmap"]


Model = Literal["affine", "homography", "fundamental", "similarity"]


# Pixels. A fundamental matrix leaves a whole line free, so it has to be stricter.
DEFAULT_RESIDUAL = {"affine": 15.0, "homography": 12.0, "fundamental": 4.0, "similarity": 15.0}


# The back-ends that know each model; "similarity" needs none.
BACKENDS: dict[str, tuple[str, ...]] = {
    "affine": ("opencv", "skimage", "pycolmap"),
    "homography": ("opencv", "skimage", "poselib", "pycolmap"),
    "fundamental": ("opencv", "skimage", "poselib", "pycolmap"),
}


def backends_for(model: str) -> tuple[str, ...]:
    """The back-ends that know a model."""
    return BACKENDS.get(model, ())


@dataclass(frozen=True)
class VerifyConfig:
    """How matches are verified.

    model:      "affine", "homography", "fundamental"; or "similarity", for features with scale (and
                orientation): every match proposes one similarity, the best five are refined to
                affine transforms, nothing is random.
    backend:    the library that samples; "similarity" needs none and takes the default only.
    residual:   pixels in the database image (for "fundamental": from the epipolar line) up to which
                a match is an inlier; None: the model's entry in DEFAULT_RESIDUAL.
    trials:     samples drawn at most ("similarity": matches that propose at most).
    confidence: sampling may stop early when a better model is less likely than 1 - confidence.
    seed:       of the sampling.

    S1: affine, skimage, residual 15, 100 trials, confidence 1. The paper: affine, 1000 trials.
    """

    model: Model = "affine"
    backend: Backend = "opencv"
    residual: float | None = None
    trials: int = 1000
    confidence: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in get_args(Model):
            expected = ", ".join(get_args(Model))
            raise InputError(f"verification model {self.model!r}: expected one of {expected}")
        known = backends_for(self.model) or (VerifyConfig.backend,)
        if self.backend not in known:
            raise InputError(
                f"verification back-end {self.backend!r} for model {self.model!r}:"
                f" expected one of {', '.join(known)}"
            )
        if self.residual is not None and not self.residual > 0:
            raise InputError(f"residual {self.residual}: expected pixels above 0")
        if self.trials < 1:
            raise InputError(f"trials {self.trials}: expected at least 1")
        if not 0 < self.confidence <= 1:
            raise InputError(f"confidence {self.confidence}: expected a number in (0, 1]")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"seed {self.seed}: expected a number from 0 to 2**31 - 1")

    @property
    def residual_px(self) -> float:
        """The residual in force, in pixels."""
        return DEFAULT_RESIDUAL[self.model] if self.residual is None else self.residual


class Matching(NamedTuple):
    """What the matches of a pair depend on, before they are held against `max_distance`."""

    num_features: int | None
    match: MatchConfig


@dataclass(frozen=True)
class Geometry:
    """What the inliers of a pair depend on; the fields are those of `RerankConfig`."""

    num_features: int | None
    match: MatchConfig
    verify: VerifyConfig

    @property
    def matching(self) -> Matching:
        """Geometries for which this is the same share one matching."""
        return Matching(self.num_features, dataclasses.replace(self.match, max_distance=None))


@dataclass(frozen=True)
class RerankConfig:
    """How rankings are verified.

    top_k:          entries at the head of each ranking that are verified and reordered.
    num_features:   the strongest so many local features of each image are matched; None: all.
    match, verify:  of every pair of images.
    fusion:         inliers that the best similarity of a row is worth, see `reorder`; 0: similarity
                    only decides between equal inliers.
    floor:          inliers that count for nothing; None: measured on random pairs. S1: 0.
    floor_pairs:    random pairs to measure it on.
    floor_quantile: of their inlier counts that is the floor. A quantile as high as 0.99 rests on
                    the few pairs that happen to show one place; 0.95 hardly moves with them.
    seed:           of the draw of the random pairs.
    threads:        None: as many as torch uses.
    """

    top_k: int = 100
    num_features: int | None = None
    match: MatchConfig = field(default_factory=MatchConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    fusion: float = 0.0
    floor: float | None = None
    floor_pairs: int = 400
    floor_quantile: float = 0.95
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("top_k", "floor_pairs"):
            if getattr(self, name) < 1:
                raise InputError(f"re-ranking {name} {getattr(self, name)}: expected at least 1")
        for name in ("num_features", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"re-ranking {name} {value}: expected at least 1")
        for name in ("fusion", "floor"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < np.inf:
                raise InputError(f"re-ranking {name} {value}: expected inliers, 0 or more")
        if not 0 <= self.floor_quantile <= 1:
            raise InputError(f"floor quantile {self.floor_quantile}: expected a number in [0, 1]")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"re-ranking seed {self.seed}: expected a number from 0 to 2**31 - 1")

    @property
    def geometry(self) -> Geometry:
        """The part that decides how many inliers a pair has; the rest is order."""
        return Geometry(self.num_features, self.match, self.verify)


@dataclass(frozen=True)
class TreeConfig:
    """Shape and training of a tree; the shape is S2's by default.

    tree_height, tree_branch: levels below the root, and children of a node. A node that gets fewer
        features than branches is a leaf, so branch ** height leaves are an upper bound.
    train_features: the tree is trained on a random sample of at most as many.
    iterations, samples_per_child: of the k-means of a node.
    tree_seed: of the sample and of the start of each k-means.
    """

    tree_height: int = 6
    tree_branch: int = 10
    train_features: int = 4_000_000
    iterations: int = 10
    samples_per_child: int = 256
    tree_seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("tree_height", 1), ("tree_branch", 2), ("train_features", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} {getattr(self, name)}: at least {least} is needed")


Score = Literal["l1", "cosine", "hamming"]


Weight = Literal["power", "soft", "hard"]


Nodes = Literal["leaves", "all"]


Norm = Literal["self", "features"]


@dataclass(frozen=True)
class ScoreConfig:
    """How shared words are scored.

    score:     "l1": Σ min(q, d) over the L1-normalised tf-idf vectors, which orders as S2's
               2 + Σ (|q − d| − |q| − |d|) does, upside down; "cosine": their inner product;
               "hamming": Σ idf² · weight(distance of signatures) over pairs of features.
    words:     nearest words of a query feature that are looked up.
    bits:      of a signature.
    aggregate: one signature for all features of an image in a word (ASMK*).
    weight:    of a Hamming distance h up to ``ht``: "power" (1 − 2h/bits) ** power, "soft"
               exp(−h²/sigma²), or "hard" 1. None: ht is 3/8 of the bits ("power": 7/16, beyond
               which the weight is below 0.002), sigma a quarter.
    burst:     several features of an image that match one query feature count as the square root of
               their number (Jégou et al., "On the burstiness of visual elements", CVPR 2009).
    nodes:     words are the "leaves" of the tree, or "all" nodes down to them (l1 and cosine only).
    norm:      what cosine and Hamming scores are divided by: "self", the square root of the image's
               score with itself, or "features", the square root of its number of features.
    """

    score: Score = "hamming"
    words: int = 5
    bits: int = 64
    aggregate: bool = False
    weight: Weight = "power"
    ht: int | None = None
    sigma: float | None = None
    power: float = 3.0
    burst: bool = True
    nodes: Nodes = "leaves"
    norm: Norm = "features"

    def __post_init__(self) -> None:
        if self.words < 1:
            raise InputError(f"--words {self.words}: at least 1 is needed")
        if self.ht is not None and not 0 <= self.ht <= self.bits:
            raise InputError(f"--ht {self.ht}: expected 0 to {self.bits}, the bits of a signature")

    @property
    def most(self) -> int:
        """The largest Hamming distance that counts."""
        if self.ht is not None:
            return self.ht
        return self.bits * 7 // 16 if self.weight == "power" else self.bits * 3 // 8


@dataclass(frozen=True)
class ExpandConfig:
    """Which images expand a query.

    expand_num:     images at most, the best verified ones.
    expand_inliers: an image with as many inliers is believed to show what the query shows.
    """

    expand_num: int = 20
    expand_inliers: int = 8

    def __post_init__(self) -> None:
        for name in ("expand_num", "expand_inliers"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: at least 1 is needed")
