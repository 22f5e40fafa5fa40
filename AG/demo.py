"""From nothing to verified recalls on the toy city, in minutes and without a GPU.

Runs the project's commands one after the other, as a user would, and ends with one table. Killed
and called again it goes on; called after it has finished it starts anew.

Examples:
    python3 AG/demo.py
    make demo
"""

import functools

from retrieval.commands import flags, script
from retrieval.configs.setting import Config

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(functools.partial(flags.read, Config), __doc__)

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from retrieval import files
from retrieval.commands.steps import Steps
from retrieval.evaluation import Evaluation, compare

log = logging.getLogger("demo")

AG = os.path.relpath(Path(__file__).parent)
FOLDER = script.LOGS / "demo"
CITY = script.CACHE / "toy_city"

DATA = f"--dataset_folder {CITY} --image_size 112 --resize_test_imgs"
NETWORK = "--backbone resnet18 --fm_reduction_dim 128 --reduction"
# From random weights and in so few steps: a higher rate, all layers, milder augmentation.
LEARNING = (
    "--groups_num 1 --lr 1e-3 --train_all_layers --brightness 0.4 --contrast 0.4 --saturation 0.4 "
    "--hue 0.1 --random_resized_crop 0.3"
)
LOCAL = "--local_scales 1 1.41 2"
JOINT = "--epochs_num 2 --iterations_per_epoch 300"
ONLY_LOCAL = "--epochs_num 1 --iterations_per_epoch 100"


def last_run(step: str) -> Path:
    """The newest run folder of a step."""
    return files.newest_folder(FOLDER / step)


def table(untrained: Evaluation, trained: Evaluation) -> str:
    """The figures as a table of plain text."""
    names = list(trained.first.figures)
    lines = [" " * 24 + "".join(name.rjust(7) for name in names)]
    for label, step in (
        ("untrained network", untrained.first),
        ("trained, global", trained.first),
        ("trained, re-ranked", trained.last),
    ):
        lines.append(label.ljust(24) + "".join(f"{step.figures[name]:7.1f}" for name in names))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the city, train, train the local head alone, evaluate; print the table."""
    flags.read(Config, __doc__, argv)
    summary_file = FOLDER / "summary.json"
    if summary_file.exists():  # of a demo that is finished: a new one starts
        for name in ("untrained", "train", "local", "eval"):
            shutil.rmtree(FOLDER / name, ignore_errors=True)
        (FOLDER / "seconds.json").unlink(missing_ok=True)
        summary_file.unlink()
    steps = Steps(FOLDER / "seconds.json")

    steps.take("toy city", f"{AG}/make_toy_city.py {CITY}")
    steps.take(
        "untrained network",
        f"{AG}/eval.py {DATA} {NETWORK} --pretrained none --no_rerank --save_dir demo/untrained",
    )
    steps.take(
        "joint training",
        f"{AG}/train.py {DATA} {NETWORK} {LEARNING} {JOINT} --pretrained none "
        "--save_dir demo/train",
    )
    joint = last_run("train") / "best_model.pth"
    steps.take(
        "local-only training",
        f"{AG}/train_only_local.py {DATA} {NETWORK} {LEARNING} {LOCAL} {ONLY_LOCAL} "
        f"--resume_model {joint} --save_dir demo/local",
    )
    weights = f"--resume_model {last_run('local') / 'best_model.pth'}"
    steps.take(
        "evaluation",
        f"{AG}/eval.py {DATA} {NETWORK} {LOCAL} {weights} --save_dir demo/eval",
    )

    summarize(steps.seconds, summary_file)


def summarize(seconds: Mapping[str, float], file: Path) -> None:
    """Print the table of both evaluations, gains and seconds, and write its figures."""
    untrained, trained = (Evaluation.open(last_run(name)) for name in ("untrained", "eval"))
    training = compare(trained.truth(), trained.metric, untrained.first, trained.first)
    reranking = compare(trained.truth(), trained.metric, trained.first, trained.last)
    lines = [table(untrained, trained), ""]
    for name, gain in (("training", training), ("reranking", reranking)):
        lines.append(f"{name.ljust(24)}{gain.in_words()}")
    times = {**seconds, "total": sum(seconds.values())}
    lines += ["", *(f"{name.ljust(24)}{taken:7.1f} s" for name, taken in times.items())]
    lines.append(f"{'a verified pair'.ljust(24)}{trained.local()[0].ms_per_pair:7.2f} ms")
    figures = {
        "untrained": untrained.first.figures,
        "global": trained.first.figures,
        "reranked": trained.last.figures,
        "gain_of_training": training.in_words(),
        "gain_of_reranking": reranking.in_words(),
        "seconds": dict(seconds),
    }
    files.write_json(file, figures)
    log.info("\n%s\n\nfigures: %s", "\n".join(lines), file)
    log.info("report, to be opened in a browser: %s", last_run("eval") / "report.html")


if __name__ == "__main__":
    script.run(main)
