"""Testing a network on revisited sets: descriptors, ranking, whitening, the printed lines."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from retrieval import evaluation, extraction, global_search, progress
from retrieval.commands.delf_flags import TestSettings
from retrieval.configs.judge import EvaluationConfig
from retrieval.configs.run import Resources
from retrieval.data.photo_sets import PhotoSet, as_photos, find_test_set, open_revisited
from retrieval.data.sfm_pairs import read_pairs
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation
from retrieval.global_search import Descriptors
from retrieval.networks.delf import Delf, MultiScale
from retrieval.report import revisited_lines
from retrieval.saved_run import read_result
from retrieval.whitening import Projection, learn_whitening

log = logging.getLogger(__name__)


def networks_in_words(meta: Mapping[str, Any]) -> str:
    """The block that delf_pytorch prints of a network."""
    lines = [">>>> used networks: ", "  (meta): dict( "]
    lines += [f"     {name}: {value}" for name, value in meta.items()]
    return "\n".join([*lines, "  )"])


def open_test_sets(data_root: Path, names: Sequence[str]) -> dict[str, PhotoSet]:
    """The test sets of these names; InputError, listing what is there, if one is missing."""
    return {name: open_revisited(find_test_set(data_root, name)) for name in names}


class Test:
    """Tests a network on all sets of a command; an `Evaluation` each, in FOLDER/test/NAME."""

    __test__ = False  # not for pytest

    def __init__(
        self,
        settings: TestSettings,
        resources: Resources,
        source: str,
        stored: Mapping[tuple[str, str], Projection],
    ) -> None:
        """Of a network from ``source``, with the whitenings stored in it.

        Such a whitening is used until the network has been trained. InputError where a test set, or
        the training set to learn a whitening on, is missing.
        """
        self._settings, self._resources, self._source = settings, resources, source
        self._sets = open_test_sets(settings.data_root, settings.names)
        whiten = settings.whiten
        folder = settings.data_root / "train" / whiten
        self._whiten_pairs = read_pairs(folder, "whiten") if whiten else None
        self._stored = stored.get((whiten, "ss" if len(settings.scales) == 1 else "ms"))

    def is_done(self, epoch: int, folder: Path) -> bool:
        """Whether ``folder`` has the evaluations of all sets after ``epoch``."""
        for name in self._sets:
            try:
                settings = read_result(folder / "test" / name)["protocol"]["settings"]
            except InputError:
                return False
            if settings.get("epoch") != epoch:
                return False
        return True

    def __call__(self, model: Delf, epoch: int, folder: Path) -> None:
        """Log the lines of delf_pytorch, and save the evaluations."""
        whitening = self._whitening(model, epoch)
        lines = [f"# {epoch}"]
        for name, photos in self._sets.items():
            run = self._evaluate(model, photos, whitening)
            told = {"epoch": epoch, "multiscale": list(self._settings.scales)}
            stamp = replace(run.protocol, settings={**run.protocol.settings, **told})
            replace(run, protocol=stamp).save(folder / "test" / name)
            for step in run.steps:
                shown = name if step is run.first else f"{name} + whiten"
                lines += revisited_lines(shown, step.figures)
        log.info("%s", "\n".join(lines))

    def _evaluate(self, model: Delf, photos: PhotoSet, whitening: Projection | None) -> Evaluation:
        """Steps "global" and, with a whitening, "whitened"."""
        network = MultiScale(model, self._settings.scales)
        described = global_search.describe_set(
            network, photos, self._settings.extract, self._resources
        )
        config = EvaluationConfig(self._settings.extract, rerank=None)
        run = global_search.evaluate(
            model, photos, config, weights=self._source, described=described
        )
        if whitening is None:
            return run
        queries, database = (
            whitening(torch.from_numpy(rows)).numpy()
            for rows in (described.queries, described.database)
        )
        whitened = Descriptors(queries, database)
        ranked = global_search.rank(whitened, photos, len(photos.database), progress.Clock())
        return replace(run, steps=(*run.steps, evaluation.score("whitened", ranked, photos)))

    def _whitening(self, model: Delf, epoch: int) -> Projection | None:
        if epoch == 0 and self._stored is not None:
            return self._stored
        pairs = self._whiten_pairs
        if pairs is None:
            return None
        network, config = MultiScale(model, self._settings.scales), self._settings.whiten_extract
        with progress.bar("descriptors", len(pairs.paths)):
            photos = as_photos(pairs.paths)
            vectors = extraction.global_descriptors(network, photos, config, self._resources)
        return learn_whitening(vectors, pairs.queries, pairs.positives)
