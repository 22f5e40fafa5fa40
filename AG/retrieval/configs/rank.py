"""How a database is ranked: matching, verification, re-ranking, visual words, expansion."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from retrieval.configs.learn import SEED
from retrieval.configs.setting import Config, setting
from retrieval.errors import InputError

Rule = Literal["mutual", "one_way"]


MatchPrecision = Literal["int8", "float32"]


@dataclass(frozen=True)
class MatchConfig(Config, group="Matching"):
    """How two sets of descriptors are matched.

    rule:         "mutual": each is the other's nearest neighbour. "one_way": the nearest database
                  descriptor of every query descriptor.
    ratio:        Lowe's test: keep a match only if its distance is below `ratio` times the distance
                  to the second nearest database descriptor; None: no such test.
    max_distance: keep a match only if its L2 distance is below this; None: no bound.
    precision:    of the products that find the neighbours: "int8" is fast, and may take one of two
                  nearly equal neighbours for the other; "float32" is exact. The distances in both
                  tests are always exact.
    """

    rule: Rule = setting(
        "mutual",
        "which features match. mutual: each is the other's nearest; one_way: every feature of the "
        "query and its nearest in the database photo",
    )
    ratio: float | None = setting(
        None,
        "Lowe's test: a match must be nearer than this times the second nearest (default: no test)",
        above=0,
        most=1,
    )
    max_distance: float | None = setting(
        None,
        "a match must be nearer than this, in L2 distance of descriptors (default: no bound; the "
        "first PyTorch DELG: one_way and 0.6)",
        above=0,
    )
    precision: MatchPrecision = setting(
        "int8",
        "arithmetic that finds nearest features; float32 is exact, int8 many times as fast",
        flag="match_precision",
        old=("precision",),
    )


Backend = Literal["opencv", "skimage", "poselib", "pycolmap"]


Model = Literal["affine", "homography", "fundamental", "similarity"]


# Pixels, where none can be measured. A fundamental matrix leaves a whole line free, so it has to
# be stricter.
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
class VerifyConfig(Config, group="Verification"):
    """How matches are verified: a geometric model is fitted, and its inliers are counted.

    model:      "affine", "homography", "fundamental"; or "similarity", for features with scale (and
                orientation): every match proposes one similarity, the best five are refined to
                affine transforms, nothing is random.
    backend:    the library that samples; "similarity" needs none and takes the default only.
    residual:   pixels of the database image as it was described (for "fundamental": from the
                epipolar line) up to which a match is an inlier; None: measured on the photo set
                (`reranking.measure_residual`), for two photos alone the model's entry in
                DEFAULT_RESIDUAL.
    trials:     samples drawn at most ("similarity": matches that propose at most).
    confidence: sampling may stop early when a better model is less likely than 1 - confidence.
    seed:       of the sampling.

    The first PyTorch DELG: affine, skimage, residual 15, 100 trials, confidence 1. The paper:
    affine, 1000 trials.
    """

    model: Model = setting(
        "affine",
        "geometric model that is fitted to the matches; similarity is for features with a scale",
    )
    backend: Backend = setting("opencv", "library that fits the model")
    residual: float | None = setting(
        None,
        "a match within this of where the model puts it is an inlier, in pixels of the photo at "
        "the size at which it is described (default: measured on the photo set; on few photos "
        "affine and similarity 15, homography 12, fundamental 4)",
        "PIXELS",
        above=0,
    )
    trials: int = setting(1000, "random samples of matches that the model is fitted to", least=1)
    confidence: float = setting(0.999, above=0, most=1)
    seed: int = setting(0, SEED, group="Run", least=0, most=2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = backends_for(self.model) or (VerifyConfig.backend,)
        if self.backend not in known:
            raise InputError(
                f"--backend {self.backend} for --model {self.model}:"
                f" expected one of {', '.join(known)}"
            )

    @property
    def residual_px(self) -> float:
        """The residual in force, in pixels of what was described."""
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


# Lowe's ratio test of SIFT, unless --ratio says something else.
SIFT_RATIO = 0.9


@dataclass(frozen=True)
class RerankConfig(Config, group="Re-ranking"):
    """How rankings are verified and reordered.

    top_k:          entries at the head of each ranking that are verified and reordered.
    num_features:   the strongest so many local features of each image are matched; None: all.
    match, verify:  of every pair of images.
    fusion:         inliers that are added for global similarity, see `reorder`; 0: similarity only
                    decides between equal inliers.
    floor:          inliers that count for nothing; None: measured on random pairs.
    floor_pairs:    random pairs to measure it on.
    floor_quantile: the floor is this quantile of the random pairs' inlier counts. One as high as
                    0.99 rests on the few pairs that happen to show one place; 0.95 hardly moves
                    with them.
    seed:           of the draw of the random pairs.
    """

    top_k: int = setting(
        100, "predictions of each query that are re-ranked", names=("rerank_num",), least=1
    )
    num_features: int | None = setting(
        None,
        "local features of a photo that are matched, the strongest (default: all)",
        least=1,
    )
    match: MatchConfig = field(default_factory=MatchConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    fusion: float = setting(
        0.0,
        "adds global similarity to the inlier count: the most similar photo gets this many extra "
        "inliers",
        "INLIERS",
        least=0,
    )
    floor: float | None = setting(
        None,
        "only inliers above this number move a photo up (default: what random pairs reach)",
        "INLIERS",
        least=0,
    )
    floor_pairs: int = setting(400, least=1)
    floor_quantile: float = setting(
        0.95, "the floor is this quantile of the random pairs' inlier counts", least=0, most=1
    )
    seed: int = setting(0, SEED, group="Run", least=0, most=2**31 - 1)

    @property
    def geometry(self) -> Geometry:
        """The part that decides how many inliers a pair has; the rest is order."""
        return Geometry(self.num_features, self.match, self.verify)

    def suited_to(self, extractor: str) -> "RerankConfig":
        """Lowe's test for SIFT, where no --ratio was given: deep features do better without."""
        if self.match.ratio or extractor != "sift":
            return self
        return dataclasses.replace(self, match=dataclasses.replace(self.match, ratio=SIFT_RATIO))


@dataclass(frozen=True)
class TreeConfig(Config, group="Visual words"):
    """Shape and training of a vocabulary tree; the shape is delf_pytorch's by default.

    A node that gets fewer features than branches is a leaf, so branch ** height leaves are an upper
    bound. `iterations` and `samples_per_child` are of the k-means of a node.
    """

    tree_height: int = setting(6, "levels of the tree below its root; 1: a flat codebook", least=1)
    tree_branch: int = setting(10, "children of a node; height 6 of 10: a million words", least=2)
    train_features: int = setting(
        4_000_000, "features that the tree is trained on, at most, drawn at random", least=1
    )
    iterations: int = 10
    samples_per_child: int = 256
    tree_seed: int = setting(0, "seed of the tree: of that draw and of k-means", least=0)


Score = Literal["l1", "cosine", "hamming"]


Weight = Literal["power", "soft", "hard"]


Nodes = Literal["leaves", "all"]


Norm = Literal["self", "features"]


@dataclass(frozen=True)
class ScoreConfig(Config, group="Visual words"):
    """How shared words are scored.

    score:     "l1": Σ min(q, d) over the L1-normalised tf-idf vectors, which orders as
               delf_pytorch's 2 + Σ (|q − d| − |q| − |d|) does, upside down; "cosine": their inner
               product; "hamming": Σ idf² · weight(distance of signatures) over pairs of features.
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

    score: Score = setting(
        "hamming",
        "how shared words are scored. l1, cosine: by tf-idf vectors; hamming: by binary signatures "
        "of the features too",
    )
    words: int = setting(5, "nearest words of a query feature that are looked up", least=1)
    bits: int = setting(64, "bits of a signature, a multiple of 64")
    aggregate: bool = setting(
        False, "one signature for all features of a photo in a word (ASMK): smaller and faster"
    )
    weight: Weight = setting(
        "power", "how the vote of two features falls with their Hamming distance"
    )
    ht: int | None = setting(
        None,
        "largest Hamming distance that counts (default: 7/16 of the bits; with --weight soft or "
        "hard 3/8)",
        "BITS",
        least=0,
    )
    sigma: float | None = setting(
        None, "width of --weight soft (default: a quarter of the bits)", "BITS"
    )
    power: float = setting(3.0, "exponent of --weight power")
    burst: bool = setting(
        True,
        "do not down-weight repeated matches: several features of a photo that match one query "
        "feature then all count in full",
    )
    nodes: Nodes = setting("leaves", "words are the leaves of the tree, or all its nodes")
    norm: Norm = setting(
        "features",
        "a photo's score is divided by the square root of its score with itself, or of its number "
        "of features",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ht is not None and self.ht > self.bits:
            raise InputError(f"--ht {self.ht}: at most {self.bits} is possible, the --bits")

    @property
    def most(self) -> int:
        """The largest Hamming distance that counts."""
        if self.ht is not None:
            return self.ht
        return self.bits * 7 // 16 if self.weight == "power" else self.bits * 3 // 8


@dataclass(frozen=True)
class ExpandConfig(Config, group="Query expansion"):
    """Which images expand a query: those believed to show what it shows."""

    expand_num: int = setting(20, "verified photos that expand a query, at most", least=1)
    expand_inliers: int | None = setting(
        None,
        "inliers with which a photo is believed to show the query's place (default: what one "
        "random pair in a hundred reaches)",
        least=1,
    )


# What verifies a ranking by visual words; as many photos as in delf_pytorch.
VERIFIED = RerankConfig(top_k=150)


@dataclass(frozen=True)
class WordsConfig(Config):
    """How a photo set is searched by visual words.

    rerank, expand: None: no re-ranking, no query expansion.
    model_given:    whether a flag names the geometric model; else SIFT, whose features have a scale
                    and an angle, is verified by "similarity".
    """

    tree: TreeConfig = field(default_factory=TreeConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    rerank: RerankConfig | None = VERIFIED
    expand: ExpandConfig | None = None
    model_given: bool = False

    def reranks(self, extractors: Sequence[str]) -> list[RerankConfig]:
        """How features of each of the ``extractors`` verify; none without re-ranking."""
        if self.rerank is None:
            return []
        sift = self.rerank
        if not self.model_given and sift.verify.backend == VerifyConfig.backend:
            own = dataclasses.replace(sift.verify, model="similarity")
            sift = dataclasses.replace(sift, verify=own)
        return [
            (sift if extractor == "sift" else self.rerank).suited_to(extractor)
            for extractor in extractors
        ]
