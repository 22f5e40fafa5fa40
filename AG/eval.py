"""Evaluate a network: global descriptors, nearest neighbours, re-ranking by local features.

Takes a data set in the layout of SF-XS (--dataset_folder), one in the layout of revisited Oxford
and Paris (gnd_*.pkl or .json beside jpg/), or any two folders (--database_folder --queries_folder).
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch

from retrieval import (
    delg,
    evaluation,
    evaluation_options,
    options,
    report,
    saved_run,
    training,
)
from retrieval.evaluation_sets import open_set
from retrieval.images import check_headers

log = logging.getLogger("eval")


def main(argv: Sequence[str] | None = None) -> None:
    """Rank, re-rank, score; print the table and write it with its protocol to the run folder."""
    asked = evaluation_options.read_evaluation(__doc__, argv)
    device = training.choose_device(asked.device)
    photos = open_set(asked.folders, asked.positives, labels=asked.labels)
    check_headers([*photos.queries, *photos.database], progress=evaluation.header_bar)
    torch.manual_seed(asked.seed)  # for --pretrained none
    model, loaded = delg.create(asked.network, asked.weights)
    evaluation_options.check_weights_suffice(
        asked.weights, asked.network, loaded, with_local=asked.rerank is not None
    )
    model.to(device)
    run = training.new_folder(asked.root)
    log.info("network: %s\nweights: %s", model.backbone.describe(), loaded)
    log.info("%d queries, %d database images", len(photos.queries), len(photos.database))

    clock = evaluation.Clock()
    skipped: list[str] | None = [] if asked.skip_bad_images else None
    depth = max(*asked.recall_values, 0 if asked.rerank is None else asked.rerank.top_k)
    if "R" not in photos.ground_truth and photos.ground_truth:
        depth = len(photos.database)  # average precision looks at the whole ranking
    ranked = evaluation.rank(model, photos, asked.extract, depth, skipped=skipped, clock=clock)
    ranking = ranked.ranking
    result: dict = {"global": evaluation.score(ranking, photos.ground_truth, asked.recall_values)}
    result["set"] = saved_run.describe_set(asked.folders, asked.positives, labels=asked.labels)
    result["feature_store"] = None
    result["per_query"] = {}
    if photos.ground_truth:
        result["per_query"]["global"] = evaluation.per_query(ranking, photos.ground_truth).tolist()
    stamp = evaluation.protocol(model, photos, asked.extract, asked.seed, str(loaded))

    if asked.rerank is not None:
        projection = evaluation.learn_projection(model, asked.pca, asked.extract, clock)
        store = evaluation.open_store(
            options.CACHE / "features", model, photos, asked.extract, projection
        )
        local = evaluation.local_features(
            *(model, photos, ranking[:, : asked.rerank.top_k], store, asked.extract, projection),
            skipped=skipped,
            clock=clock,
        )
        result["feature_store"] = str(store.folder.resolve())
        reranked = evaluation.rerank_locally(ranked, local, asked.rerank, clock)
        ranking = reranked.ranking
        stamp["rerank"] = {**asdict(asked.rerank), "floor": reranked.floor}
        stamp["projection"] = {name: str(value) for name, value in asdict(asked.pca).items()}
        result["pairs"], result["ms_per_pair"] = reranked.num_inliers.size, reranked.ms_per_pair
        result["thread_seconds"] = reranked.seconds
        if photos.ground_truth:
            result["reranked"] = evaluation.score(ranking, photos.ground_truth, asked.recall_values)
            result["per_query"]["reranked"] = evaluation.per_query(
                ranking, photos.ground_truth
            ).tolist()
            result["comparison"] = evaluation.compare(
                ranked.ranking, ranking, photos.ground_truth, photos.query_ids
            )

    result |= {"seconds": clock.seconds, "skipped": skipped or [], "protocol": stamp}
    saved_run.save_ranking(run, ranked)
    report.write_json(run / "result.json", result)
    report.write_predictions(run / "predictions.csv", photos, ranking, max(asked.recall_values))
    if asked.save_descriptors:
        np.save(run / "queries_descriptors.npy", ranked.queries)
        np.save(run / "database_descriptors.npy", ranked.database)
    report.save_strips(
        *(run / "preds", photos, ranking, asked.num_preds_to_save),
        only_wrong=asked.save_only_wrong_preds,
    )
    log.info("%s\nresult: %s", report.table(result), run / "result.json")


if __name__ == "__main__":
    options.run(main)
