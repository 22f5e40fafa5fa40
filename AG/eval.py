"""Evaluate a network: global descriptors, nearest neighbours, re-ranking by local features.

Takes a data set in the layout of SF-XS (--dataset_folder), one in the layout of revisited Oxford
and Paris (gnd_*.pkl or .json beside jpg/), or any two folders (--database_folder --queries_folder).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrieval import devices, evaluation, files, progress, protocol, report, saved_run
from retrieval.commands import evaluate, script
from retrieval.commands.evaluate import EvaluationOptions
from retrieval.data.images import check_headers
from retrieval.data.photo_sets import PhotoSet, open_set
from retrieval.drawing import looks
from retrieval.drawing.html_report.content import ReportContent
from retrieval.drawing.html_report.page import write_report
from retrieval.evaluation import Ranked
from retrieval.networks import delg
from retrieval.networks.delg import Delg

log = logging.getLogger("eval")


def load_network(asked: EvaluationOptions) -> tuple[Delg, str]:
    """The network on its device, and what its weights are."""
    torch.manual_seed(asked.seed)  # for --pretrained none
    model, loaded = delg.create(asked.network, asked.weights)
    evaluate.check_weights_suffice(
        asked.weights, asked.network, loaded, with_local=asked.rerank is not None
    )
    log.info("network: %s\nweights: %s", model.backbone.describe(), loaded)
    return model.to(devices.choose_device(asked.device)), str(loaded)


def depth_of(asked: EvaluationOptions, photos: PhotoSet) -> int:
    """How far rankings go: all of the database where average precision looks at it."""
    if photos.ground_truth and "R" not in photos.ground_truth:
        return len(photos.database)
    return max(*asked.recall_values, 0 if asked.rerank is None else asked.rerank.top_k)


def figures_of(
    rankings: Mapping[str, np.ndarray], photos: PhotoSet, recall_values: Sequence[int]
) -> dict[str, Any]:
    """What result.json tells of each step, and of what re-ranking did; empty without labels."""
    truth = photos.ground_truth
    if not truth:
        return {"global": {}, "per_query": {}}
    result: dict[str, Any] = {
        step: evaluation.score(ranking, truth, recall_values) for step, ranking in rankings.items()
    }
    result["per_query"] = {
        step: evaluation.per_query(ranking, truth).tolist() for step, ranking in rankings.items()
    }
    if "reranked" in rankings:
        steps = rankings["global"], rankings["reranked"]
        result["comparison"] = evaluation.compare(*steps, truth, photos.query_ids)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Rank, re-rank, score; print the table, write it with its protocol and all pictures."""
    asked = evaluate.read_evaluation(__doc__, argv)
    photos = open_set(asked.folders, asked.positives, labels=asked.labels)
    check_headers([*photos.queries, *photos.database])
    model, weights = load_network(asked)
    log.info("%d queries, %d database images", len(photos.queries), len(photos.database))
    if asked.rerank_config is not None:
        how = "no re-ranking as %s says" if asked.rerank is None else "re-ranking as %s says"
        log.info(how, asked.rerank_config)
    run = files.new_folder(asked.root)
    clock = progress.Clock()
    skipped: list[str] | None = [] if asked.skip_bad_images else None

    depth = depth_of(asked, photos)
    ranked = evaluation.rank(model, photos, asked.extract, depth, skipped=skipped, clock=clock)
    rankings = {"global": ranked.ranking}
    stamp = protocol.protocol(model, photos, asked.extract, asked.seed, weights)
    result: dict[str, Any] = {"feature_store": None}
    local, num_inliers = None, None
    if asked.rerank is not None:
        projection = evaluation.learn_projection(model, asked.pca, asked.extract, clock)
        store = evaluation.open_store(
            script.CACHE / "features", model, photos, asked.extract, projection
        )
        shortlists = ranked.ranking[:, : asked.rerank.top_k]
        local = evaluation.local_features(
            *(model, photos, shortlists, store, asked.extract, projection),
            skipped=skipped,
            clock=clock,
        )
        reranked = evaluation.rerank_locally(ranked, local, asked.rerank, clock)
        rankings["reranked"], num_inliers = reranked.ranking, reranked.num_inliers
        stamp["rerank"] = {**asdict(asked.rerank), "floor": reranked.floor}
        stamp["projection"] = {name: str(value) for name, value in asdict(asked.pca).items()}
        result["feature_store"] = str(store.folder.resolve())
        result["pairs"], result["ms_per_pair"] = reranked.num_inliers.size, reranked.ms_per_pair
        result["thread_seconds"] = reranked.seconds

    result |= figures_of(rankings, photos, asked.recall_values)
    result["set"] = saved_run.describe_set(asked.folders, asked.positives, labels=asked.labels)
    result |= {"seconds": clock.seconds, "skipped": skipped or [], "protocol": stamp}
    saved_run.save_rankings(run, ranked, rankings)
    report.write_json(run / "result.json", result)
    content = ReportContent(
        f"{asked.network.backbone} on {asked.folders.queries or photos.folder}",
        photos,
        rankings,
        figures={step: result[step] for step in rankings if result.get(step)},
        seconds=clock.seconds,
        protocol=stamp,
        notes=report.notes(result),
        num_inliers=num_inliers,
        local=local,
        rerank=asked.rerank,
    )
    write_pictures(run, content, ranked, asked)
    log.info("%s\nresult: %s", report.table(result), run / "result.json")
    log.info("report, to be opened in a browser: %s", run / "report.html")


def write_pictures(
    run: Path, content: ReportContent, ranked: Ranked, asked: EvaluationOptions
) -> None:
    """The page, the predictions, and what flags ask for beside them."""
    ranking = content.last
    write_report(run / "report.html", content, asked.report_queries)
    report.write_predictions(
        run / "predictions.csv", content.photos, ranking, max(asked.recall_values)
    )
    if asked.save_descriptors:
        np.save(run / "queries_descriptors.npy", ranked.queries)
        np.save(run / "database_descriptors.npy", ranked.database)
    looks.save_strips(
        *(run / "preds", content.photos, ranking, asked.num_preds_to_save),
        only_wrong=asked.save_only_wrong_preds,
    )


if __name__ == "__main__":
    script.run(main)
