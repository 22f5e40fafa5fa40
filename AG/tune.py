"""Choose the settings of re-ranking on a validation split, from features that eval.py saved.

    python3 AG/eval.py … --test_set_folder CITY/val --save_dir val
    python3 AG/eval.py … --test_set_folder CITY/test --save_dir test
    python3 AG/tune.py logs/val/DATE --test_run logs/test/DATE
    python3 AG/eval.py … --rerank_config logs/val/DATE/tuning/rerank.toml

Nothing is extracted again. Inliers are counted once for each distinct geometry, and kept in the
output folder: killed and called again, the same command goes on. If the gain of the best setting on
the validation split may as well be none (its 95 % interval reaches down to 0), rerank.toml says
that there is to be no re-ranking.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from retrieval import checkpoint, progress, report, rerank_file
from retrieval.commands import script
from retrieval.commands.tune import TuningOptions, read_tuning
from retrieval.configs.rank import RerankConfig
from retrieval.drawing import figures
from retrieval.networks import delg
from retrieval.saved_run import SavedRun, open_run
from retrieval.tuning import search_space, tables, try_settings
from retrieval.tuning.tables import Measured
from retrieval.tuning.try_settings import Outcome
from retrieval.tuning.tuning_figure import panels

log = logging.getLogger("tune")


def open_runs(asked: TuningOptions) -> dict[str, SavedRun]:
    """The runs on "validation" and, if asked for, "test"; InputError unless they go together."""
    run = open_run(asked.run)
    stamp = run.result["protocol"]
    if asked.model is not None:
        torch.manual_seed(stamp["seed"])  # as eval.py, for parts that the file leaves random
        network = delg.resolve_config(stamp["network"], str(asked.model))
        model, _ = delg.create(network, str(asked.model))
        run = open_run(asked.run, checkpoint.weights_hash(model.state_dict()))
    try_settings.check_labels(run)
    if asked.test_run is None:
        return {"validation": run}
    test = open_run(asked.test_run, stamp["weights_sha256"])
    try_settings.check_labels(test)
    try_settings.check_comparable(run, test)
    return {"validation": run, "test": test}


def evaluate(
    run: SavedRun, settings: Sequence[RerankConfig], asked: TuningOptions, name: str
) -> list[Outcome]:
    """`try_settings.evaluate` with a progress bar."""
    pairs = len(try_settings.shortlists(run, settings).pairs)
    total = pairs * len(search_space.geometries(settings))
    with progress.bar(name, total, "pairs"):
        return try_settings.evaluate(
            run, settings, asked.output / "counts", threads=asked.threads, progress=progress.advance
        )


def measure(test: SavedRun, best: RerankConfig, asked: TuningOptions) -> dict[str, Measured]:
    """The setting that was best on validation, and the defaults, on the test split."""
    default = RerankConfig()
    default = replace(default, top_k=min(default.top_k, test.with_local()[0].top_k))
    before = try_settings.before(test)
    return {
        name: tables.measured(evaluate(test, [setting], asked, f"test, {name}")[0], before)
        for name, setting in {"best of validation": best, "defaults": default}.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Search, measure on the test split, print; write tuning.json, tuning.png and rerank.toml."""
    asked = read_tuning(__doc__, argv)
    runs = open_runs(asked)
    run, test = runs["validation"], runs.get("test")
    base, _ = run.with_local()
    settings = search_space.grid(asked.axes, base)
    for each in runs.values():
        try_settings.check_depth(each, settings)
    log.info("validation: %d queries of %s", len(run.photos.queries), run.photos.folder)
    log.info("%s", tables.plan(asked.axes, base, settings))

    outcomes = try_settings.best_first(evaluate(run, settings, asked, "validation"))
    metric = tables.metric_of(run.photos.ground_truth)
    best = tables.measured(outcomes[0], try_settings.before(run))
    log.info("\nbest\n%s", tables.best_table(outcomes, metric))
    log.info("\nPareto front\n%s", tables.front_table(outcomes, metric, best.before))

    tested = {} if test is None else measure(test, best.outcome.settled, asked)
    told = tables.summary(metric, len(settings), best, tested)
    log.info("\n%s", "\n".join(told))
    chosen = try_settings.choose(best.outcome, best.gain)
    content = tables.as_json(outcomes, metric, best, tested)
    content |= {f"protocol_{name}": each.result["protocol"] for name, each in runs.items()}
    report.write_json(asked.output / "tuning.json", content)
    figure = panels(outcomes, best.before, metric)
    figures.save(figure, asked.output / "tuning.png")
    comment = [f"Written by tune.py from {run.folder}", *told]
    rerank_file.write_rerank(asked.output / "rerank.toml", chosen, comment)  # last: it is complete
    log.info("\nwritten: tuning.json, tuning.png, rerank.toml in %s", asked.output)


if __name__ == "__main__":
    script.run(main)
