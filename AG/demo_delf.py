"""The DELF system from nothing to its table on a toy data set, in minutes and without a GPU.

Writes a toy retrieval-SfM-120k, fine-tunes, trains the attention, extracts features (and SIFT's, to
compare with), searches by a vocabulary tree. Every command is printed as it can be typed. Killed
and called again, it goes on.

Examples:
    python3 AG/demo_delf.py
    python3 AG/demo_delf.py --pretrained logs/demo/train/DATE/best_model.pth
"""

from retrieval.commands import delf_flags, script

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(delf_flags.read_delf_demo, __doc__)

import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from retrieval.commands.steps import Steps
from retrieval.evaluation import Evaluation

log = logging.getLogger("demo")

AG = os.path.relpath(Path(__file__).parent)
FOLDER = script.LOGS / "demo_delf"
DATA = script.CACHE / "toy_sfm"
TEST = "toytown"

TOY = "--train_streets 5 --val_streets 1 --test_streets 3 --image_size 256"
TUNING = (
    f"--data-root {DATA} --training-dataset 'retrieval-SfM-120k' --test-datasets '{TEST}' "
    "--arch 'resnet18' --pool 'gem' --loss 'contrastive' --loss-margin 0.85 --optimizer 'adam' "
    "--neg-num 3 --query-size=100 --pool-size=400 --batch-size 5 --image-size 160 --num-workers 1 "
    "--lr 1e-4 --epochs 4 --no-val --test-freq 2"
)
FEATURES = "--layer layer3 --feature-num 500 --local-scales '1/2, 2**-0.5, 1, 2**0.5, 2'"
TREE = "--tree-height 6 --tree-branch 10 --top-k 50"


def global_figures(folder: Path) -> str:
    """One line of a network's last test by global descriptors."""
    run = Evaluation.open(folder / "test" / TEST)
    words = ", ".join(f"{name}: {run.first.figures[f'mAP {name}']:.2f}" for name in "EMH")
    return f"mAP {words} (epoch {run.protocol.settings['epoch']})"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the whole chain and print its table."""
    weights = delf_flags.read_delf_demo(__doc__, argv).pretrained
    tuning = TUNING + (" --not-pretrained" if weights is None else "")
    start = "" if weights is None else f" --pretrained {shlex.quote(str(weights))}"
    root = FOLDER / ("random" if weights is None else "given")
    models, attention, features = (root / name for name in ("models", "attention", "features"))
    words = shlex.split(f"{models} {tuning}{start}")
    name = delf_flags.read_finetuning(None, words).name

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
        for how in ("--original --no-rerank", "--original", "--no-rerank", "")
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
