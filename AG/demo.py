"""From nothing to verified recalls on the toy city, in minutes and without a GPU.

Runs the project's commands one after the other, as a user would, and ends with one table. Killed
and called again it goes on; called after it has finished it starts anew.
"""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import files, metrics, report
from retrieval.commands import flags, script
from retrieval.commands.steps import Steps

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


def result_of(step: str) -> dict[str, Any]:
    """What a step's evaluation wrote."""
    return json.loads((last_run(step) / "result.json").read_text())


def table(summary: dict[str, Any]) -> str:
    """The figures as a table of plain text."""
    names = list(summary["global"])
    lines = [" " * 24 + "".join(name.rjust(7) for name in names)]
    for key, label in (
        ("untrained", "untrained network"),
        ("global", "trained, global"),
        ("reranked", "trained, re-ranked"),
    ):
        lines.append(label.ljust(24) + "".join(f"{summary[key][name]:7.1f}" for name in names))
    lines.append("")
    for step in ("training", "reranking"):
        gain = summary[f"gain_of_{step}"]
        low, high = gain["interval_95"]
        lines.append(
            f"{step.ljust(24)}R@1 {gain['R@1']:+.1f} [{low:+.1f}, {high:+.1f}] (paired, 95 %)"
        )
    lines.append("")
    lines += [f"{step.ljust(24)}{seconds:7.1f} s" for step, seconds in summary["seconds"].items()]
    lines.append(f"{'total'.ljust(24)}{sum(summary['seconds'].values()):7.1f} s")
    lines.append(f"{'a verified pair'.ljust(24)}{summary['ms_per_pair']:7.2f} ms")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the city, train, train the local head alone, evaluate; print the table."""
    flags.parse(flags.make_parser(__doc__), argv)
    summary_file = FOLDER / "summary.json"
    if summary_file.exists():
        shutil.rmtree(FOLDER)
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

    untrained, trained = result_of("untrained"), result_of("eval")
    gain, low, high = metrics.paired_interval(
        np.array(trained["per_query"]["global"]), np.array(untrained["per_query"]["global"])
    )
    summary = {
        "untrained": untrained["global"],
        "global": trained["global"],
        "reranked": trained["reranked"],
        "seconds": steps.seconds,
        "ms_per_pair": trained["ms_per_pair"],
        "gain_of_training": {"R@1": gain, "interval_95": [low, high]},
        "gain_of_reranking": {
            "R@1": trained["comparison"]["difference"],
            "interval_95": trained["comparison"]["interval_95"],
        },
    }
    report.write_json(summary_file, summary)
    page = last_run("eval") / "report.html"
    log.info(
        "\n%s\n\nfigures: %s\nreport, to be opened in a browser: %s",
        table(summary),
        summary_file,
        page,
    )


if __name__ == "__main__":
    script.run(main)
