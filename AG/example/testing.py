"""Testing a network on revisited sets: descriptors, ranking, S2's lines, result.json."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from example.options import Options
from retrieval import evaluation, extraction, metrics, progress, protocol, report, search
from retrieval.configs.describe import ExtractConfig
from retrieval.data.photo_sets import PhotoSet, open_revisited
from retrieval.data.sfm_pairs import SfmPairs, read_pairs
from retrieval.feature_folders import find_test_set
from retrieval.networks.delf import Delf, MultiScale
from retrieval.report import revisited_lines
from retrieval.whitening import Projection, learn_whitening

log = logging.getLogger(__name__)

RESULT = "result.json"
TEST_SIZE = 1024  # longest side of test images, as in cirtorch


def networks_in_words(meta: Mapping[str, Any]) -> str:
    """The block that S2 prints of a network."""
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
    multiscale: tuple[float, ...] = (1.0,),
) -> np.ndarray:
    """(N, D) float32 descriptors of unit norm."""
    network = MultiScale(model, multiscale)
    with progress.bar("descriptors", len(paths)):
        return extraction.global_descriptors(network, paths, config, progress=progress.advance)


@dataclass(frozen=True)
class Test:
    """Tests a network on all sets of a command.

    whiten_pairs: photos to learn a whitening on, or None. stored: a whitening that came with the
    weights, used until they have been trained.
    """

    sets: dict[str, PhotoSet]
    extract: ExtractConfig
    multiscale: tuple[float, ...]
    seed: int
    source: str
    whiten_pairs: SfmPairs | None = None
    stored: Projection | None = None
    whiten_config: ExtractConfig = field(default_factory=ExtractConfig)

    def is_done(self, epoch: int, folder: Path) -> bool:
        """Whether ``folder`` has the figures of all sets after ``epoch``."""
        if not self.sets:
            return True
        file = folder / RESULT
        found = json.loads(file.read_text()) if file.is_file() else {"epoch": None, "figures": {}}
        return found["epoch"] == epoch and self.sets.keys() <= found["figures"].keys()

    def __call__(self, model: Delf, epoch: int, folder: Path) -> dict[str, Any]:
        """Log S2's lines, write ``folder``/result.json; the figures by name of the set."""
        whitening = self._whitening(model, epoch)
        figures: dict[str, Any] = {}
        stamps = {}
        network = MultiScale(model, self.multiscale)
        for name, photos in self.sets.items():
            count = len(photos.database)
            ranked = evaluation.rank(network, photos, self.extract, count)
            figures[name] = metrics.evaluate_revisited(ranked.ranking, photos.ground_truth)
            if whitening is not None:
                queries, database = (
                    whitening(torch.from_numpy(x)).numpy()
                    for x in (ranked.queries, ranked.database)
                )
                ranking, _ = search.knn(queries, database, count)
                whitened = metrics.evaluate_revisited(ranking, photos.ground_truth)
                figures[f"{name} + whiten"] = whitened
            stamps[name] = protocol.protocol(model, photos, self.extract, self.seed, self.source)
            stamps[name] |= {"multiscale": list(self.multiscale), "queries": "cropped to bbx"}
        lines = [line for name, of in figures.items() for line in revisited_lines(name, of)]
        log.info("%s", "\n".join([f"# {epoch}", *lines]))
        content = {"epoch": epoch, "figures": figures, "protocol": stamps}
        report.write_json(folder / RESULT, content)
        return figures

    def _whitening(self, model: Delf, epoch: int) -> Projection | None:
        if epoch == 0 and self.stored is not None:
            return self.stored
        if self.whiten_pairs is None:
            return None
        pairs = self.whiten_pairs
        vectors = describe(model, pairs.paths, self.whiten_config, self.multiscale)
        return learn_whitening(vectors, pairs.queries, pairs.positives)


def make_test(asked: Options, source: str, stored: Mapping[tuple[str, str], Projection]) -> Test:
    """The test that a command's flags ask for."""
    whiten = asked.run.test_whiten
    folder = asked.data_root / "train" / whiten
    return Test(
        open_test_sets(asked.data_root, asked.test_datasets),
        asked.extraction(TEST_SIZE),
        asked.multiscale,
        asked.tune.seed,
        source,
        read_pairs(folder, "whiten") if whiten else None,
        stored.get((whiten, "ss" if len(asked.multiscale) == 1 else "ms")),
        asked.extraction(asked.tune.image_size),
    )
