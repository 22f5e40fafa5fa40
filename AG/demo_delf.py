"""The DELF system from nothing to its table on a toy data set, in minutes and without a GPU.

Writes a toy retrieval-SfM-120k, fine-tunes, trains the attention, extracts features (and SIFT's, to
compare with), searches by a vocabulary tree. Every command is printed as it can be typed. Killed
and called again, it goes on.
"""

import json
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from example import options as example_options
from retrieval.commands import flags, script
from retrieval.commands.steps import Steps
from retrieval.errors import InputError

log = logging.getLogger("demo")

AG = os.path.relpath(Path(__file__).parent)
FOLDER = script.LOGS / "demo_delf"
DATA = script.CACHE / "toy_sfm"
TEST = "toytown"

TOY = "--train_streets 5 --val_streets 1 --test_streets 3 --image_size 256"
TUNING = (
    f"--data-root {DATA} --training-dataset 'retrieval-SfM-120k' --test-datasets '{TEST}' "
    "--arch 'resnet18' --pool 'gem' --loss 'contrastive' --loss-margin 0.85 --optimizer 'adam' "
    "--neg-num 3 --query-size=100 --pool-size=400 --batch-size 5 --image-size 160 --workers 1 "
    "--lr 1e-4 --epochs 4 --no-val --test-freq 2"
)
FEATURES = "--layer layer3 --feature-num 500 --scales '1/2, 2**-0.5, 1, 2**0.5, 2'"
TREE = "--tree-height 6 --tree-branch 10 --rerank-num 50"


def global_figures(folder: Path) -> str:
    """One line of a network's last test by global descriptors."""
    result = json.loads((folder / "result.json").read_text())
    figures = result["figures"][TEST]
    words = ", ".join(f"{name}: {of['mAP']:.2f}" for name, of in figures.items())
    return f"mAP {words} (epoch {result['epoch']})"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the whole chain and print its table."""
    parser = flags.make_parser(__doc__)
    text = "weights to fine-tune, such as ImageNet's or cirtorch's (default: random weights)"
    parser.add_argument("--pretrained", type=Path, metavar="FILE", help=text)
    weights = flags.parse(parser, argv).get("pretrained")
    if weights is not None and not weights.is_file():
        raise InputError(f"--pretrained {weights}: no such file")
    tuning = TUNING + (" --not-pretrained" if weights is None else "")
    start = "" if weights is None else f" --pretrained {shlex.quote(str(weights))}"
    root = FOLDER / ("random" if weights is None else "given")
    models, attention, features = (root / name for name in ("models", "attention", "features"))
    words = shlex.split(f"{models} {tuning}{start}")
    name = example_options.read_tuning(None, words, attention=False).name

    steps = Steps(root / "seconds.json")
    steps.take("toy data set", f"{AG}/make_toy_sfm.py {DATA} {TOY}")
    steps.take("fine-tuning", f"-m example.finetuning {models} {tuning}{start}")
    second = f"{tuning} --param-directory"
    steps.take("attention", f"-m example.attention {attention} {second} {models}")
    steps.take(
        "local features",
        f"-m example.extract_features {features} {second} {attention} {FEATURES}",
    )
    sift = f"-m voc_tree.SIFT.get_descriptor {features} --data-root {DATA} --test-datasets '{TEST}'"
    steps.take("SIFT", sift)
    steps.take(
        "vocabulary tree",
        f"-m voc_tree.main {root / 'trees'} --root-directory {features / name} {TREE} "
        f"--test-datasets '{TEST}' --output {root / 'output_delf.txt'}",
    )
    rows = [
        f"--root-directory {features / kind} {TREE} {how}"
        for kind in ("sift", name)
        for how in ("--s2 --no-ransac", "--s2", "--no-ransac", "")
    ]
    listed = " ".join(f"--row {shlex.quote(row)}" for row in rows)
    table = root / "table"
    steps.take("table", f"-m voc_tree.grid {table} --test-datasets '{TEST}' {listed}")

    log.info("\nglobal descriptors, fine-tuned:      %s", global_figures(models / name))
    log.info("global descriptors with attention:   %s", global_figures(attention / name))
    log.info("local features and vocabulary tree:\n%s", (table / f"grid_{TEST}.txt").read_text())
    log.info("%.0f s in all", sum(steps.seconds.values()))


if __name__ == "__main__":
    script.run(main)
