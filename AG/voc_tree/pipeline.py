"""The method, step by step: codebook, index, ranking, verification, expansion.

`WordSearch` does the steps for one photo set, and each step once for all settings that share it.
Every step tells `progress.advance` how many photos, queries or pairs are done.
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from retrieval import evaluation, progress, reranking, search
from retrieval.configs.rank import (
    ExpandConfig,
    RerankConfig,
    ScoreConfig,
    TreeConfig,
    WordsConfig,
)
from retrieval.data.photo_sets import PhotoSet
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation
from retrieval.feature_folders import SetFeatures, check_complete
from retrieval.features import LocalFeatures
from retrieval.progress import Clock
from retrieval.protocol import protocol_of
from retrieval.reranking import Reranking
from retrieval.search import Ranking
from voc_tree import expansion, hamming, scoring, tree
from voc_tree.index import Index, nearest_words
from voc_tree.tree import Tree

# Descriptors from which the medians of Hamming embedding are learned.
_EMBEDDING_SAMPLE = 2_000_000
# Photos that are quantised and indexed at a time.
_PHOTOS = 128


def sample_descriptors(features: Sequence[LocalFeatures], most: int, seed: int) -> list[np.ndarray]:
    """Descriptors (n, d) of photos drawn at random, until there are ``most`` of them."""
    drawn: list[np.ndarray] = []
    total = 0
    for row in np.random.default_rng(seed).permutation(len(features)):
        if total >= most:
            break
        drawn.append(features[int(row)].descriptors)
        total += len(drawn[-1])
    return drawn


def train_tree(features: SetFeatures, config: TreeConfig) -> Tree:
    """A tree of the database's own descriptors, as in delf_pytorch."""
    sample = sample_descriptors(features.database, config.train_features, config.tree_seed)
    if not sum(map(len, sample)):
        raise InputError(
            f"no photo in {features.store.folder} has any features: extract them again"
        )
    return tree.build(np.concatenate(sample), config, asdict(features.store.made_by))


def index_database(database: Sequence[LocalFeatures], codebook: Tree, config: ScoreConfig) -> Index:
    """A database in an inverted file."""
    embedding = None
    if config.score == "hamming":
        seed = codebook.config.tree_seed
        sample = sample_descriptors(database, _EMBEDDING_SAMPLE, seed)
        words = np.concatenate(nearest_words(codebook, sample))
        embedding = hamming.learn_embedding(
            codebook, np.concatenate(sample), words, config.bits, seed
        )
    index = Index(codebook, config, embedding)
    for start in range(0, len(database), _PHOTOS):
        part = database[start : start + _PHOTOS]
        index.add([features.descriptors for features in part])
        progress.advance(len(part))
    index.file.refresh_idf()
    return index


def rank(queries: Sequence[LocalFeatures], index: Index) -> Ranking:
    """All database photos for each query, by the score of their words."""
    rows = []
    for query in queries:
        rows.append(scoring.best(index.scores(query.descriptors)))
        progress.advance()
    return _stacked(rows, len(index.file))


def _stacked(rows: list[tuple[np.ndarray, np.ndarray]], width: int) -> Ranking:
    ranking, similarity = ([row[i] for row in rows] for i in (0, 1))
    shape = (len(rows), width)
    return Ranking(np.reshape(ranking, shape).astype(np.int64), np.reshape(similarity, shape))


def expand(
    features: SetFeatures,
    index: Index,
    ranked: Ranking,
    verified: Reranking,
    config: ExpandConfig,
    rerank: RerankConfig,
) -> Ranking:
    """Ask again with the features of verified photos, which stay first."""
    rows = []
    believed = expansion.believed(verified, ranked, config)
    for row, (query, photos) in enumerate(zip(features.queries, believed, strict=True)):
        if len(photos) == 0:
            rows.append((verified.ranking.rows[row], verified.ranking.similarity[row]))
        else:
            friends = [features.database[int(photo)] for photo in photos[: config.expand_num]]
            scores = index.scores(expansion.expanded(query, friends, rerank))
            best = scoring.best(scores)[0]
            best = best[np.isin(best, ranked.rows[row])]  # a query is no answer to itself
            ranking = expansion.verified_first(photos, best)
            rows.append((ranking, scores[ranking]))
        progress.advance()
    return _stacked(rows, ranked.rows.shape[1])


class WordSearch:
    """A photo set with stored local features, searched by visual words.

    What two settings share (tree, index, ranking, verification) is done once. ``codebook`` is a
    tree that is taken whatever the settings say, or None.
    """

    def __init__(
        self, photos: PhotoSet, features: SetFeatures, codebook: Tree | None = None
    ) -> None:
        check_complete(features)
        self.photos, self.features, self._codebook = photos, features, codebook
        self._clock = Clock()
        self.tree = functools.cache(self._tree)
        self._index = functools.lru_cache(1)(self._build_index)
        self._ranked = functools.cache(self._rank)
        self._verified = functools.cache(self._verify)

    def _tree(self, config: TreeConfig) -> Tree:
        if self._codebook is not None:
            return self._codebook
        with self._clock.stage("tree"):
            return train_tree(self.features, config)

    def _build_index(self, tree_config: TreeConfig, config: ScoreConfig) -> Index:
        codebook = self.tree(tree_config)
        with self._clock.stage("index", len(self.photos.database)):
            return index_database(self.features.database, codebook, config)

    def _rank(
        self, tree_config: TreeConfig, config: ScoreConfig
    ) -> tuple[Ranking, tuple[str, ...]]:
        """The ranking, and what is to be said of its index."""
        index = self._index(tree_config, config)
        with self._clock.stage("search", len(self.photos.queries), "queries"):
            ranked = rank(self.features.queries, index)
        return search.without(ranked, self.photos.selves), _notes(index)

    def _verify(
        self, tree_config: TreeConfig, score: ScoreConfig, config: RerankConfig
    ) -> Reranking:
        ranked, _ = self._ranked(tree_config, score)
        with self._clock.stage("verification", ranked.rows[:, : config.top_k].size, "pairs"):
            return reranking.rerank(ranked, self.features.queries, self.features.database, config)

    def evaluate(self, config: WordsConfig) -> Evaluation:
        """Search by one setting: steps "words", and where asked for "verified" and "expanded"."""
        made_by = self.features.store.made_by
        config = config.suited_to(made_by.extractor)
        words, notes = self._ranked(config.tree, config.score)
        rankings, verified = {"words": words}, None
        if config.rerank is not None:
            found = self._verified(config.tree, config.score, config.rerank)
            rankings["verified"] = found.ranking
            verified = evaluation.verified_by(found, config.rerank)
            if config.expand is not None:
                index = self._index(config.tree, config.score)
                with self._clock.stage("expansion", len(self.photos.queries), "queries"):
                    rankings["expanded"] = expand(
                        self.features, index, words, found, config.expand, config.rerank
                    )
        settings = {"features": asdict(made_by), **asdict(config)}
        if verified is not None:
            settings["rerank"] = asdict(verified.config)
        seconds, self._clock.seconds = self._clock.seconds, {}
        return Evaluation(
            title=f"{self.photos.name} by visual words of {made_by.extractor} features",
            photos=self.photos,
            steps=tuple(
                evaluation.score(name, ranking, self.photos) for name, ranking in rankings.items()
            ),
            protocol=protocol_of(self.photos, settings),
            seconds=seconds,
            verified=verified,
            features=self.features,
            notes=notes,
        )


def _notes(index: Index) -> tuple[str, ...]:
    file, words = index.file, index.tree.num_leaves
    size = file.nbytes / max(int(file.num_features.sum()), 1)
    empty = int((file.num_features == 0).sum())
    told = [f"{words} words, {size:.1f} bytes a feature"]
    told += [f"{empty} database images without features rank last"] if empty else []
    return tuple(told)
