"""Search by global descriptors, re-ranked by local features: describe, rank, re-rank, evaluate."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import (
    checkpoint,
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
from retrieval.evaluation import Evaluation
from retrieval.feature_folders import SetFeatures, features_of_set, stored_features
from retrieval.features import FeatureStore
from retrieval.networks.interface import GlobalNetwork, Network
from retrieval.progress import Clock
from retrieval.reranking import Reranking
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
    settings = {
        "network": asdict(network.config),
        "weights": checkpoint.weights_hash(network.state_dict()),
        "resize": [config.resize, config.size],
        "local_scales": list(config.local_scales),
        "max_features": config.max_features,
        "min_score": config.min_score,
        "precision": config.precision,
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
    features: SetFeatures,
    config: RerankConfig,
    resources: Resources,
    clock: Clock,
) -> Reranking:
    """Re-rank the first ``config.top_k`` of each query by geometry."""
    pairs = int((ranked.rows[:, : config.top_k] >= 0).sum())
    with clock.stage("re-ranking", pairs, "pairs"):
        return reranking.rerank(
            ranked, features.queries, features.database, config, resources.threads
        )


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
    features: FeatureStore | None = None,
    resources: Resources | None = None,
) -> Evaluation:
    """Evaluate a network on a photo set: steps "global" and, unless switched off, "reranked".

    weights: where the network's weights are from, for the protocol. described: the set's
    descriptors, if known. features: stored local features, of any extractor, to re-rank by instead
    of the network's own. Raises InputError for photos that cannot be decoded (unless they are to be
    skipped), for descriptors that are not finite, and for features of other photos.
    """
    config, resources = config or EvaluationConfig(), resources or Resources()
    described = described or describe_set(network, photos, config.extract, resources)
    clock, recalls = Clock({"global descriptors": described.seconds}), config.recall_values
    rankings = {"global": rank(described, photos, depth_of(photos, config), clock)}
    settings = protocol.network_settings(network, config.extract, weights) | {"seed": config.seed}
    local, verified = None, None
    if config.rerank is not None:
        head = rankings["global"].rows[:, : config.rerank.top_k]
        if features is None:
            rows = np.unique(head[head >= 0])
            rows = np.arange(len(photos.database)) if config.all_local_features else rows
            local = extract_features(network, photos, rows, config, resources, clock)
            settings["projection"] = {key: str(value) for key, value in asdict(config.pca).items()}
        else:
            local = stored_features(photos, features, head)
        found = verify(rankings["global"], local, config.rerank, resources, clock)
        rankings["reranked"], verified = found.ranking, evaluation.verified_by(found, config.rerank)
        settings |= {"rerank": asdict(verified.config), "features": asdict(local.store.made_by)}
    return Evaluation(
        title=f"{photos.name} by {getattr(network.config, 'backbone', '')}",
        photos=photos,
        steps=tuple(evaluation.score(*each, photos, recalls) for each in rankings.items()),
        protocol=protocol.protocol_of(photos, settings),
        seconds=clock.seconds,
        verified=verified,
        features=local,
        skipped=described.skipped(photos),
    )


def rerank(run: Evaluation, **settings: Any) -> Evaluation:
    """An evaluation's first ranking re-ranked anew from its stored features; no network is needed.

    settings: fields of `RerankConfig` that differ from how ``run`` was re-ranked; without a floor
    among them, it is measured anew. Raises InputError
    where ``run`` has no local features, or ``top_k`` is beyond those that it has.
    """
    verified, features = run.local()
    config = replace(verified.config, **{"floor": None, **settings})
    if config.top_k > verified.config.top_k:
        raise InputError(
            f"top_k {config.top_k}: {run.place} has local features of the first "
            f"{verified.config.top_k} predictions of each query"
        )
    clock = Clock()
    found = verify(run.first.ranking, features, config, Resources(), clock)
    recall_values = [int(name[2:]) for name in run.first.figures if name.startswith("R@")]
    step = evaluation.score("reranked", found.ranking, run.photos, recall_values or RECALL_VALUES)
    verified = evaluation.verified_by(found, config)
    told = {**run.protocol.settings, "rerank": asdict(verified.config)}
    return replace(
        run,
        steps=(run.first, step),
        verified=verified,
        protocol=replace(run.protocol, settings=told),
        seconds=clock.seconds,
        notes=(),
        command="",
        folder=None,
    )
