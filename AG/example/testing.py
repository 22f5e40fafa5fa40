"""Testing a network on revisited sets: descriptors, ranking, whitening, the printed lines."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrieval import evaluation, extraction, global_search, progress
from retrieval.commands.delf_flags import TestSettings
from retrieval.configs.describe import ExtractConfig
from retrieval.configs.judge import EvaluationConfig
from retrieval.configs.run import Resources
from retrieval.data.photo_sets import PhotoSet, as_photos, find_test_set, open_revisited
from retrieval.data.sfm_pairs import SfmPairs, read_pairs
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


def describe(
    model: Delf,
    paths: Sequence[Path],
    config: ExtractConfig,
    resources: Resources,
    multiscale: tuple[float, ...] = (1.0,),
) -> np.ndarray:
    """(N, D) float32 descriptors of unit norm."""
    network = MultiScale(model, multiscale)
    with progress.bar("descriptors", len(paths)):
        return extraction.global_descriptors(network, as_photos(paths), config, resources)


@dataclass(frozen=True)
class Test:
    """Tests a network on all sets of a command; an `Evaluation` each, in FOLDER/test/NAME.

    whiten_pairs: photos to learn a whitening on, or None. stored: a whitening that came with the
    weights, used until they have been trained.
    """

    sets: dict[str, PhotoSet]
    extract: ExtractConfig
    resources: Resources
    multiscale: tuple[float, ...]
    source: str
    whiten_pairs: SfmPairs | None = None
    stored: Projection | None = None
    whiten_config: ExtractConfig = field(default_factory=ExtractConfig)

    __test__ = False  # not for pytest

    def is_done(self, epoch: int, folder: Path) -> bool:
        """Whether ``folder`` has the evaluations of all sets after ``epoch``."""
        for name in self.sets:
            try:
                settings = read_result(folder / "test" / name)["protocol"]["settings"]
            except InputError:
                return False
            if settings.get("epoch") != epoch:
                return False
        return True

    def __call__(self, model: Delf, epoch: int, folder: Path) -> dict[str, Evaluation]:
        """Log the lines of delf_pytorch, save and return the evaluations by name of the set."""
        whitening = self._whitening(model, epoch)
        found = {}
        lines = [f"# {epoch}"]
        for name, photos in self.sets.items():
            run = self._evaluate(model, photos, whitening)
            told = {"epoch": epoch, "multiscale": list(self.multiscale)}
            stamp = replace(run.protocol, settings={**run.protocol.settings, **told})
            found[name] = replace(run, protocol=stamp).save(folder / "test" / name)
            for step in run.steps:
                shown = name if step is run.first else f"{name} + whiten"
                lines += revisited_lines(shown, step.figures)
        log.info("%s", "\n".join(lines))
        return found

    def _evaluate(self, model: Delf, photos: PhotoSet, whitening: Projection | None) -> Evaluation:
        """Steps "global" and, with a whitening, "whitened"."""
        network = MultiScale(model, self.multiscale)
        described = global_search.describe_set(network, photos, self.extract, self.resources)
        config = EvaluationConfig(self.extract, rerank=None)
        run = global_search.evaluate(
            model, photos, config, weights=self.source, described=described
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
        if epoch == 0 and self.stored is not None:
            return self.stored
        if self.whiten_pairs is None:
            return None
        pairs = self.whiten_pairs
        config, resources = self.whiten_config, self.resources
        vectors = describe(model, pairs.paths, config, resources, self.multiscale)
        return learn_whitening(vectors, pairs.queries, pairs.positives)


def make_test(
    settings: TestSettings,
    resources: Resources,
    source: str,
    stored: Mapping[tuple[str, str], Projection],
) -> Test:
    """The test by these settings of a network from ``source``, with the whitenings stored in it."""
    whiten = settings.whiten
    return Test(
        open_test_sets(settings.data_root, settings.names),
        settings.extract,
        resources,
        settings.scales,
        source,
        read_pairs(settings.data_root / "train" / whiten, "whiten") if whiten else None,
        stored.get((whiten, "ss" if len(settings.scales) == 1 else "ms")),
        settings.whiten_extract,
    )
