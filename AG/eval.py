"""Evaluate a network: global descriptors, nearest neighbours, re-ranking by local features.

Takes a data set in the layout of SF-XS (--dataset_folder), one in the layout of revisited Oxford
and Paris (gnd_*.pkl or .json beside jpg/), or any two folders (--database_folder --queries_folder).
Writes a run folder with result.json, predictions.csv and report.html.

Examples:
    python3 AG/eval.py --dataset_folder sf_xs --resume_model best_model.pth
    python3 AG/eval.py --database_folder DB --queries_folder Q --no_labels --resume_model M
"""

from retrieval.commands import eval_flags, script

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(eval_flags.read_evaluation, __doc__)

import logging
from collections.abc import Sequence

import torch

from retrieval import devices, global_search, report
from retrieval.compact.store import compacted
from retrieval.confidence.odds import open_teacher, with_confidence
from retrieval.data.photo_sets import check_photos, open_set
from retrieval.drawing import looks
from retrieval.drawing.html_report.page import write_report
from retrieval.feature_folders import find_store, stored_features
from retrieval.networks.create import create

log = logging.getLogger("eval")


def main(argv: Sequence[str] | None = None) -> None:
    """Describe, rank, re-rank, score; save the evaluation, its page and its predictions."""
    asked = eval_flags.read_evaluation(__doc__, argv)
    photos = open_set(asked.source)
    stored = [stored_features(photos, find_store(folder)) for folder in asked.local_features]
    teacher = open_teacher(asked.confidence)
    check_photos(photos.files, skip=asked.judged.extract.skip_bad_images)
    torch.manual_seed(asked.judged.seed)  # for --pretrained none
    network, loaded, _ = create(asked.network, asked.weights)
    eval_flags.check_weights_suffice(
        asked.weights,
        asked.network,
        loaded,
        with_local=asked.judged.rerank is not None and not stored,
    )
    network.to(devices.choose_device(asked.resources.device))
    run = script.open_run(asked.root)
    log.info("network: %s\nweights: %s", network.backbone.describe(), loaded)
    log.info("%d queries, %d database images", len(photos.queries), len(photos.database))
    if asked.rerank_config is not None:
        how = "no re-ranking as %s says" if asked.judged.rerank is None else "re-ranking as %s says"
        log.info(how, asked.rerank_config)
    features = [compacted(each, asked.compact) for each in stored]
    described = global_search.describe_set(network, photos, asked.judged.extract, asked.resources)
    found = global_search.evaluate(
        network,
        photos,
        asked.judged,
        weights=str(loaded),
        described=described,
        features=features,
        resources=asked.resources,
    )
    evaluation = with_confidence(found, teacher, asked.confidence).save(run)
    log.info("%s", report.table(evaluation))
    report.write_predictions(run / "predictions.csv", evaluation, max(asked.judged.recall_values))
    if asked.save_descriptors:
        global_search.save_descriptors(run, described)
    looks.save_strips(
        run / "preds", evaluation, asked.num_preds_to_save, only_wrong=asked.save_only_wrong_preds
    )
    write_report(run / "report.html", evaluation, asked.report_queries)
    pages = run / "result.json", run / "report.html"
    log.info("result: %s\nreport, to be opened in a browser: %s", *pages)


if __name__ == "__main__":
    script.run(main)
