"""The method, step by step: codebook, index, ranking, verification, expansion.

`WordSearch` does the steps for one photo set, and each step once for all settings that share it.
Every step tells `progress.advance` how many photos, queries or pairs are done.
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from retrieval import evaluation, progress, reranking, search
from retrieval.configs.rank import (
    ExpandConfig,
    ScoreConfig,
    TreeConfig,
    WordsConfig,
)
from retrieval.data.photo_sets import PhotoSet
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation
from retrieval.feature_folders import (
    SetFeatures,
    check_complete,
    check_not_binary,
    sample_descriptors,
)
from retrieval.features import LocalFeatures
from retrieval.global_search import Descriptors
from retrieval.progress import Clock
from retrieval.protocol import protocol_of
from retrieval.reranking import Evidence, Reranking
from retrieval.search import Ranking
from voc_tree import expansion, hamming, scoring, tree
from voc_tree.index import Index, nearest_words
from voc_tree.tree import Tree

# Descriptors from which the medians of Hamming embedding are learned.
_EMBEDDING_SAMPLE = 2_000_000
# Photos that are quantised and indexed at a time.
_PHOTOS = 128


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


def rank_by_descriptors(descriptors: Descriptors) -> Ranking:
    """All database photos for each query, by global descriptors (`search.above_chance`)."""
    every = [search.above_chance(query, descriptors.database) for query in descriptors.queries]
    return _stacked([scoring.best(scores) for scores in every], len(descriptors.database))


def _stacked(rows: list[tuple[np.ndarray, np.ndarray]], width: int) -> Ranking:
    ranking, similarity = ([row[i] for row in rows] for i in (0, 1))
    shape = (len(rows), width)
    return Ranking(np.reshape(ranking, shape).astype(np.int64), np.reshape(similarity, shape))


def expand(
    features: Sequence[SetFeatures],
    indexes: Sequence[Index],
    ranked: Ranking,
    found: Reranking,
    config: ExpandConfig,
    descriptors: Descriptors | None = None,
) -> Ranking:
    """Ask every index again with the features of verified photos, which stay first.

    descriptors: global ones, asked again by the mean of the query's and the photos'.
    """
    geometries = [kind.geometry for kind in found.kinds]
    rows = []
    for row, photos in enumerate(expansion.believed(found, ranked, config)):
        if len(photos) == 0:
            rows.append((found.ranking.rows[row], found.ranking.similarity[row]))
        else:
            lenders, each_scores = photos[: config.expand_num], []
            for each, index, geometry in zip(features, indexes, geometries, strict=True):
                friends = [each.database[int(photo)] for photo in lenders]
                asked = expansion.expanded(each.queries[row], friends, geometry)
                each_scores.append(index.scores(asked))
            if descriptors is not None:
                mean = descriptors.queries[row] + descriptors.database[lenders].sum(axis=0)
                each_scores.append(search.above_chance(mean, descriptors.database))
            scores = search.summed(each_scores)
            best = scoring.best(scores)[0]
            best = best[np.isin(best, ranked.rows[row])]  # a query is no answer to itself
            ranking = expansion.verified_first(photos, best)
            rows.append((ranking, scores[ranking]))
        progress.advance()
    return _stacked(rows, ranked.rows.shape[1])


def extractors_of(features: Sequence[SetFeatures]) -> list[str]:
    """What made each kind of features."""
    return [each.store.made_by.extractor for each in features]


class WordSearch:
    """A photo set with stored local features of one or several kinds, searched by visual words.

    Each kind has a tree and an index of its own; what they say is summed (`search.summed`,
    `reranking.summed`). What two settings share (tree, index, ranking, verification) is done once.
    ``codebooks`` are trees, one for each kind, that are taken whatever the settings say.
    ``described``: global descriptors, and the evaluation they are of, as one more index.
    """

    def __init__(
        self,
        photos: PhotoSet,
        features: Sequence[SetFeatures],
        codebooks: Sequence[Tree] = (),
        described: tuple[Descriptors, Evaluation] | None = None,
    ) -> None:
        for each in features:
            check_complete(each)
            check_not_binary(each, "visual words")
        self.photos, self.features, self._codebooks = photos, features, codebooks
        self._descriptors = None if described is None else described[0]
        self._described = None if described is None else described[1]
        self._clock = Clock()
        self.tree = functools.cache(self._tree)
        self._index = functools.lru_cache(len(features))(self._build_index)
        self._ranked = functools.cache(self._rank)
        self._verified = functools.cache(self._verify)

    def _tree(self, config: TreeConfig, kind: int) -> Tree:
        if self._codebooks:
            return self._codebooks[kind]
        with self._clock.stage("tree"):
            return train_tree(self.features[kind], config)

    def _build_index(self, tree_config: TreeConfig, config: ScoreConfig, kind: int) -> Index:
        codebook = self.tree(tree_config, kind)
        with self._clock.stage("index", len(self.photos.database)):
            return index_database(self.features[kind].database, codebook, config)

    def _rank(
        self, tree_config: TreeConfig, config: ScoreConfig
    ) -> tuple[Ranking, tuple[str, ...]]:
        """The ranking, and what is to be said of its indexes."""
        rankings: list[Ranking] = []
        notes: list[str] = []
        for kind, features in enumerate(self.features):
            index = self._index(tree_config, config, kind)
            with self._clock.stage("search", len(self.photos.queries), "queries"):
                rankings.append(rank(features.queries, index))
            about = f"{features.store.made_by.extractor}: " if len(self.features) > 1 else ""
            notes += [about + note for note in _notes(index)]
        if self._descriptors is not None:
            rankings.append(rank_by_descriptors(self._descriptors))
        return search.without(search.fused(rankings), self.photos.selves), tuple(notes)

    def _verify(self, config: WordsConfig) -> Reranking:
        ranked, _ = self._ranked(config.tree, config.score)
        configs = config.reranks(extractors_of(self.features))
        evidence = [
            Evidence(each.queries, each.database, rerank.geometry)
            for each, rerank in zip(self.features, configs, strict=True)
        ]
        pairs = ranked.rows[:, : configs[0].top_k].size * len(evidence)
        with self._clock.stage("verification", pairs, "pairs"):
            return reranking.rerank(ranked, evidence, configs[0])

    def evaluate(self, config: WordsConfig) -> Evaluation:
        """Search by one setting: steps "words", and where asked for "verified" and "expanded"."""
        words, notes = self._ranked(config.tree, config.score)
        rankings = {"words": words}
        evidence: tuple[evaluation.Verified, ...] = ()
        if config.rerank is not None:
            found = self._verified(replace(config, expand=None))
            rankings["verified"] = found.ranking
            notes += found.notes
            configs = config.reranks(extractors_of(self.features))
            evidence = evaluation.verified_by(found, configs, self.features)
            if config.expand is not None:
                kinds = range(len(self.features))
                indexes = [self._index(config.tree, config.score, kind) for kind in kinds]
                with self._clock.stage("expansion", len(self.photos.queries), "queries"):
                    rankings["expanded"] = expand(
                        self.features, indexes, words, found, config.expand, self._descriptors
                    )
        made_by = [asdict(each.store.made_by) for each in self.features]
        settings = {"features": made_by[0] if len(made_by) == 1 else made_by, **asdict(config)}
        settings |= evaluation.told_of(evidence) if evidence else {}
        if self._described is not None:
            settings["descriptors"] = dict(self._described.protocol.settings)
        seconds, self._clock.seconds = self._clock.seconds, {}
        names = " and ".join(extractors_of(self.features))
        return Evaluation(
            title=f"{self.photos.name} by visual words of {names} features",
            photos=self.photos,
            steps=tuple(
                evaluation.score(name, ranking, self.photos) for name, ranking in rankings.items()
            ),
            protocol=protocol_of(self.photos, settings),
            seconds=seconds,
            evidence=evidence,
            notes=notes,
        )


def _notes(index: Index) -> tuple[str, ...]:
    file, words = index.file, index.tree.num_leaves
    size = file.nbytes / max(int(file.num_features.sum()), 1)
    empty = int((file.num_features == 0).sum())
    told = [f"{words} words, {size:.1f} bytes a feature"]
    told += [f"{empty} database images without features rank last"] if empty else []
    return tuple(told)
