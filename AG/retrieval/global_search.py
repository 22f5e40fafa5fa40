"""Search by global descriptors, re-ranked by local features: describe, rank, re-rank, evaluate."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import (
    checkpoint,
    devices,
    evaluation,
    extraction,
    feature_folders,
    protocol,
    reranking,
    search,
)
from retrieval.configs.describe import ExtractConfig, PcaConfig
from retrieval.configs.judge import RECALL_VALUES, EvaluationConfig
from retrieval.configs.rank import RerankConfig
from retrieval.configs.run import Resources
from retrieval.data import images
from retrieval.data.photo_sets import PhotoSet, as_photos
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation, Verified, score
from retrieval.feature_folders import SetFeatures, features_of_set, stored_features
from retrieval.features import FeatureStore
from retrieval.files import write_npy
from retrieval.networks.interface import GlobalNetwork, Network
from retrieval.progress import Clock
from retrieval.reranking import Evidence, Reranking
from retrieval.search import Ranking
from retrieval.whitening import Projection, learn_pca


@dataclass(frozen=True)
class Descriptors:
    """Global descriptors of a photo set, (Q, D) and (N, D) float32 of unit norm.

    The row of a photo that could not be decoded is zero. seconds: that it took to make them.
    """

    queries: np.ndarray
    database: np.ndarray
    seconds: float = 0.0

    def skipped(self, photos: PhotoSet) -> tuple[str, ...]:
        """The names of the photos that could not be decoded."""
        every = [*photos.query_photos, *photos.database_photos]
        sound = np.concatenate([self.queries.any(axis=1), self.database.any(axis=1)])
        return tuple(photo.name for photo, there in zip(every, sound, strict=True) if not there)


# What eval.py --save_descriptors writes into its run folder, in the order of `Descriptors`.
DESCRIPTOR_FILES = ("queries_descriptors.npy", "database_descriptors.npy")


def save_descriptors(folder: Path, descriptors: Descriptors) -> None:
    """Write what `open_descriptors` reads."""
    arrays = descriptors.queries, descriptors.database
    for name, array in zip(DESCRIPTOR_FILES, arrays, strict=True):
        write_npy(folder / name, array)


def open_descriptors(folder: Path, photos: PhotoSet) -> tuple[Descriptors, Evaluation]:
    """The descriptors in a run folder of eval.py --save_descriptors, and the run.

    Raises InputError where they cannot be read or are of other photos than ``photos``.
    """
    run = Evaluation.open(folder, with_features=False)
    if run.protocol.fingerprint != photos.fingerprint():
        raise InputError(f"{folder} has descriptors of other photos than {photos.name}")
    arrays = []
    for name, count in zip(DESCRIPTOR_FILES, (photos.queries, photos.database), strict=True):
        remedy = "run eval.py again with --save_descriptors"
        try:
            array = np.load(folder / name, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{folder / name} cannot be read ({error}): {remedy}") from None
        if array.ndim != 2 or len(array) != len(count) or not np.isfinite(array).all():
            raise InputError(f"{folder / name}: not what eval.py writes: {remedy}")
        arrays.append(array.astype(np.float32))
    return Descriptors(*arrays), run


def describe_set(
    network: GlobalNetwork, photos: PhotoSet, config: ExtractConfig, resources: Resources
) -> Descriptors:
    """The global descriptors of all photos of a set."""
    count = len(photos.queries) + len(photos.database)
    clock = Clock()
    with clock.stage("global descriptors", count):
        parts = photos.database_photos, photos.query_photos
        database, queries = (
            extraction.global_descriptors(network, part, config, resources) for part in parts
        )
    return Descriptors(queries, database, clock.seconds["global descriptors"])


def rank(descriptors: Descriptors, photos: PhotoSet, k: int, clock: Clock) -> Ranking:
    """Exact k nearest neighbours, without photos that could not be decoded, or are the query."""
    queries, database = descriptors.queries, descriptors.database
    rows = np.flatnonzero(database.any(axis=1))
    if len(rows) == 0:
        raise InputError(f"none of the {len(database)} database images could be decoded")
    asked = queries.any(axis=1)
    most = max(map(len, photos.selves or ()), default=0)
    with clock.stage("nearest neighbours"):
        found, near = search.knn(queries[asked], database[rows], k + most)
    ranking = np.full((len(queries), found.shape[1]), -1, np.int64)
    similarity = np.full(ranking.shape, -np.inf, np.float32)
    ranking[asked], similarity[asked] = rows[found], near
    return search.without(Ranking(ranking, similarity), photos.selves)


def learn_projection(
    network: Network, pca: PcaConfig, config: ExtractConfig, resources: Resources, clock: Clock
) -> Projection | None:
    """The projection of local descriptors that ``pca`` asks for, if it names photos."""
    if pca.pca_photos is None:
        return None
    photos = as_photos(images.list_images(pca.pca_photos))
    with clock.stage("projection", len(photos)):
        samples = extraction.local_descriptors(network, photos, config, resources)
    return learn_pca(samples, pca.pca_dim, pca.pca_power)


def open_store(
    network: Network,
    photos: PhotoSet,
    config: ExtractConfig,
    projection: Projection | None,
    folder: Path,
) -> FeatureStore:
    """The store below ``folder`` of these photos' local features by this network."""
    device = next(network.parameters()).device
    settings = {
        "network": asdict(network.config),
        "weights": checkpoint.weights_hash(network.state_dict()),
        "resize": [config.resize, config.size],
        "local_scales": list(config.local_scales),
        "max_features": config.max_features,
        "min_score": config.min_score,
        "precision": devices.settled(config.precision, device),
        "projection": None if projection is None else projection.fingerprint(),
    }
    extractor = type(network).__name__.lower()
    return feature_folders.open_store(photos, extractor, settings, folder)


def extract_features(
    network: Network,
    photos: PhotoSet,
    rows: Sequence[int] | np.ndarray,
    config: EvaluationConfig,
    resources: Resources,
    clock: Clock,
) -> SetFeatures:
    """Local features of the queries and of these rows of the database; those stored are kept."""
    projection = learn_projection(network, config.pca, config.extract, resources, clock)
    store = open_store(network, photos, config.extract, projection, resources.cache / "features")
    with clock.stage("local features", len(photos.queries) + len(rows)):
        for part in (photos.query_photos, [photos.database_photos[row] for row in rows]):
            extraction.extract_local_features(
                network, part, store, config.extract, projection, resources
            )
    return features_of_set(photos, store)


def verify(
    ranked: Ranking,
    features: Sequence[SetFeatures],
    configs: Sequence[RerankConfig],
    resources: Resources,
    clock: Clock,
) -> Reranking:
    """Re-rank the first ``top_k`` of each query by geometry; a config for each kind of features."""
    pairs = int((ranked.rows[:, : configs[0].top_k] >= 0).sum()) * len(features)
    with clock.stage("re-ranking", pairs, "pairs"):
        return reranking.rerank(
            ranked, evidence_of(features, configs), configs[0], resources.threads
        )


def evidence_of(features: Sequence[SetFeatures], configs: Sequence[RerankConfig]) -> list[Evidence]:
    """Features of several kinds, with the geometry of each one's config."""
    return [
        Evidence(each.queries, each.database, config.geometry)
        for each, config in zip(features, configs, strict=True)
    ]


def depth_of(photos: PhotoSet, config: EvaluationConfig) -> int:
    """How far rankings go: all of the database where average precision looks at it."""
    if photos.protocol == "M":
        return len(photos.database)
    return max(*config.recall_values, 0 if config.rerank is None else config.rerank.top_k)


def evaluate(
    network: Network,
    photos: PhotoSet,
    config: EvaluationConfig | None = None,
    *,
    weights: str = "",
    described: Descriptors | None = None,
    features: Sequence[FeatureStore] = (),
    resources: Resources | None = None,
) -> Evaluation:
    """Evaluate a network on a photo set: steps "global" and, unless switched off, "reranked".

    weights: where the network's are from, for the protocol. described: the set's descriptors, if
    known. features: stored local features, of any extractors, to re-rank by instead of its own.
    InputError for photos that cannot be decoded (unless skipped), or features of other photos.
    """
    config, resources = config or EvaluationConfig(), resources or Resources()
    described = described or describe_set(network, photos, config.extract, resources)
    clock = Clock({"global descriptors": described.seconds})
    rankings = {"global": rank(described, photos, depth_of(photos, config), clock)}
    settings = protocol.network_settings(network, config.extract, weights) | {"seed": config.seed}
    evidence: tuple[Verified, ...] = ()
    notes: tuple[str, ...] = ()
    if config.rerank is not None:
        head = rankings["global"].rows[:, : config.rerank.top_k]
        local = [stored_features(photos, store, head) for store in features]
        if not local:
            rows = _with_features(photos, head, config)
            local = [extract_features(network, photos, rows, config, resources, clock)]
            settings["projection"] = {key: str(value) for key, value in asdict(config.pca).items()}
        configs = _configs_of(local, config.rerank)
        found = verify(rankings["global"], local, configs, resources, clock)
        rankings["reranked"], notes = found.ranking, found.notes
        evidence = evaluation.verified_by(found, configs, local)
        settings |= evaluation.told_of(evidence)
    return Evaluation(
        title=f"{photos.name} by {getattr(network.config, 'backbone', '')}",
        photos=photos,
        steps=tuple(score(*each, photos, config.recall_values) for each in rankings.items()),
        protocol=protocol.protocol_of(photos, settings),
        seconds=clock.seconds,
        evidence=evidence,
        skipped=described.skipped(photos),
        notes=notes,
    )


def _with_features(photos: PhotoSet, head: np.ndarray, config: EvaluationConfig) -> np.ndarray:
    """The rows of the database that need local features: those in (Q, k) ``head``, or all."""
    if config.all_local_features:
        return np.arange(len(photos.database))
    return np.unique(head[head >= 0])


def _configs_of(local: Sequence[SetFeatures], rerank: RerankConfig) -> list[RerankConfig]:
    """How each kind of features verifies; of one kind alone the flags say all."""
    if len(local) == 1:
        return [rerank]
    return [rerank.suited_to(each.store.made_by.extractor) for each in local]


def rerank(run: Evaluation, **settings: Any) -> Evaluation:
    """An evaluation's first ranking re-ranked anew from its stored features; no network is needed.

    settings: fields of `RerankConfig` that differ from how ``run`` was re-ranked; without a floor
    among them, it is measured anew. Raises InputError where ``run`` has no local features, or
    ``top_k`` is beyond those that it has.
    """
    verified, _ = run.local()
    configs = [replace(kind.config, **{"floor": None, **settings}) for kind in run.evidence]
    if configs[0].top_k > verified.config.top_k:
        raise InputError(
            f"top_k {configs[0].top_k}: {run.place} has local features of the first "
            f"{verified.config.top_k} predictions of each query"
        )
    clock = Clock()
    features = [kind.features for kind in run.evidence if kind.features is not None]
    found = verify(run.first.ranking, features, configs, Resources(), clock)
    recall_values = [int(name[2:]) for name in run.first.figures if name.startswith("R@")]
    step = score("reranked", found.ranking, run.photos, recall_values or RECALL_VALUES)
    evidence = evaluation.verified_by(found, configs, features)
    told = {**run.protocol.settings, **evaluation.told_of(evidence)}
    return replace(
        run,
        steps=(run.first, step),
        evidence=evidence,
        protocol=replace(run.protocol, settings=told),
        seconds=clock.seconds,
        notes=found.notes,
        confidence=None,  # it was of the other order
        min_confidence=0.0,
        command="",
        folder=None,
    )
