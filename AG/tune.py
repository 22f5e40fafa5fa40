"""Choose the settings of re-ranking on a validation split, from features that eval.py saved.

Every combination of the values is tried; nothing is extracted again. Inliers are counted once for
each distinct geometry, and kept in the output folder: killed and called again, the same command
goes on. The best of many settings looks better than it is: it is chosen again by many draws of the
queries, and measured on those not drawn. If its gain there may as well be none (its 95 % interval
reaches down to 0), rerank.toml says that there is to be no re-ranking. That file is for eval.py
--rerank_config.

Examples:
    python3 AG/tune.py logs/val/DATE --test_run logs/test/DATE
    python3 AG/tune.py logs/val/DATE --top_k 20 50 --model affine homography --fusion 0 30
"""

from retrieval.commands import script, tune_flags

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(tune_flags.read_tuning, __doc__)

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from retrieval import checkpoint, progress
from retrieval.configs import rerank_file
from retrieval.configs.rank import RerankConfig
from retrieval.drawing import figures
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation
from retrieval.files import write_json
from retrieval.networks.create import create, resolve_config
from retrieval.tuning import search_space, tables, try_settings
from retrieval.tuning.tables import Measured
from retrieval.tuning.try_settings import Outcome
from retrieval.tuning.tuning_figure import panels

log = logging.getLogger("tune")


def open_runs(
    validation: Path, test: Path | None, model: Path | None
) -> tuple[Evaluation, Evaluation | None]:
    """The two runs; InputError unless they go together, and are of the weights ``model``."""
    run = Evaluation.open(validation)
    if model is not None:
        if "network" not in run.protocol.settings:
            raise InputError(f"{validation} is of visual words: leave --resume_model out")
        torch.manual_seed(run.protocol.settings["seed"])  # for parts that the file leaves random
        config = resolve_config(run.protocol.settings["network"], str(model))
        network, _, _ = create(config, str(model))
        run = Evaluation.open(validation, checkpoint.weights_hash(network.state_dict()))
    try_settings.check_labels(run)
    if test is None:
        return run, None
    other = Evaluation.open(test)
    try_settings.check_labels(other)
    try_settings.check_comparable(run, other)
    return run, other


def try_all(
    name: str, run: Evaluation, settings: Sequence[RerankConfig], folder: Path, threads: int | None
) -> list[Outcome]:
    """`try_settings.try_all` with a progress bar; counts are kept in ``folder``."""
    pairs = len(try_settings.shortlists(run, settings).pairs)
    with progress.bar(name, pairs * len(search_space.geometries(settings)), "pairs"):
        return try_settings.try_all(run, settings, folder / "counts", threads)


def measure(
    test: Evaluation, best: RerankConfig, folder: Path, threads: int | None
) -> dict[str, Measured]:
    """The setting that was best on validation, and the defaults, on the test split."""
    default = RerankConfig()
    default = replace(default, top_k=min(default.top_k, test.local()[0].config.top_k))
    default = try_settings.with_residual(test, default, threads)
    return {
        name: tables.measured(
            try_all(f"test, {name}", test, [setting], folder, threads)[0], test.first.per_query
        )
        for name, setting in {"best of validation": best, "defaults": default}.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Search, measure on the test split, print; write tuning.json, tuning.png and rerank.toml."""
    asked = tune_flags.read_tuning(__doc__, argv)
    run, test = open_runs(asked.run, asked.test_run, asked.model)
    base = run.local()[0].config
    settings = search_space.grid(asked.axes, base)
    for each in (run, *filter(None, [test])):
        try_settings.check_depth(each, settings)
    log.info("validation: %d queries of %s", len(run.photos.queries), run.photos.folder)
    log.info("%s", tables.plan(asked.axes, base, settings))

    tried = try_all("validation", run, settings, asked.output, asked.resources.threads)
    outcomes = try_settings.best_first(tried)
    best = tables.measured(outcomes[0], run.first.per_query)
    log.info("\nbest\n%s", tables.best_table(outcomes, run.metric))
    log.info("\nPareto front\n%s", tables.front_table(outcomes, run.metric, best.before))

    tested = {}
    if test is not None:
        tested = measure(test, best.outcome.settled, asked.output, asked.resources.threads)
    gained = try_settings.gain_of_choosing(outcomes, run.first.per_query)
    told = tables.summary(run.metric, len(settings), best, gained, tested)
    log.info("\n%s", "\n".join(told))
    content = tables.as_json(outcomes, run.metric, best, gained, tested)
    content["protocols"] = [each.protocol.settings for each in (run, *filter(None, [test]))]
    write_json(asked.output / "tuning.json", content)
    figures.save(panels(outcomes, best.before, run.metric), asked.output / "tuning.png")
    comment = [f"Written by tune.py from {run.folder}", *told]
    chosen = try_settings.choose(best.outcome, gained)
    rerank_file.write_rerank(asked.output / "rerank.toml", chosen, comment)  # last: it is complete
    log.info("\nwritten: tuning.json, tuning.png, rerank.toml in %s", asked.output)


if __name__ == "__main__":
    script.run(main)
