"""What is told of a search: the protocol that its figures rest on, and its page."""

from dataclasses import asdict
from typing import Any

import numpy as np

from retrieval import evaluation, protocol
from retrieval.data import photo_sets
from retrieval.drawing.html_report.content import ReportContent
from retrieval.evaluation import LocalSource
from retrieval.rerank import Reranking
from voc_tree.options import Settings
from voc_tree.test_set import TestSet


def report_content(
    photos: TestSet,
    settings: Settings,
    rankings: dict[str, np.ndarray],
    verified: Reranking | None,
    found: dict[str, Any],
) -> ReportContent:
    """What the HTML report is made of; the photos may have gone since their features were made."""
    empty = found["database_images_without_features"]
    return ReportContent(
        photos.dataset,
        photo_sets.open_revisited(photos.folder, need_photos=False),
        rankings,
        {step: evaluation.score(of, photos.ground_truth) for step, of in rankings.items()},
        found["seconds"],
        found["protocol"],
        [f"{empty} database images without features rank last"] if empty else [],
        None if verified is None else verified.num_inliers,
        LocalSource(photos.queries.__getitem__, photos.database.__getitem__),
        settings.rerank,
    )


def protocol_of(photos: TestSet, settings: Settings) -> dict[str, Any]:
    """What the figures rest on."""
    return {
        "dataset": photos.dataset,
        "num_queries": len(photos.queries),
        "num_database": len(photos.database),
        "features": photos.settings,
        **{name: value for name, value in asdict(settings).items() if name != "root"},
        "versions": protocol.versions(),
        "commit": protocol.commit(),
    }
