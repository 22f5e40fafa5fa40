"""Every command that writes, killed at random moments (SIGKILL) and called again.

What it leaves in the end must be what it leaves when nobody kills it, to the bit, and no litter.
"""

import contextlib
import functools
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.torture.damage import digest
from tests.torture.table import Row

from retrieval.evaluation import Evaluation
from retrieval.feature_folders import find_store

ROOT = Path(__file__).parents[2]
AG = ROOT / "AG"
CITY = (
    "--image_size 64 --train_streets 1 --val_streets 1 --test_streets 1 --cells_per_street 1 "
    "--val_queries 6 --test_queries 8 --num_workers 1"
)
TOWN = (
    "--image_size 64 --train_streets 1 --val_streets 1 --test_streets 1 --images_per_landmark 5 "
    "--num_workers 1"
)
RUN = "--num_workers 0 --device cpu --precision fp32"
NETWORK = "--backbone resnet18 --fc_output_dim 16 --fm_reduction_dim 8 --reduction"
TRAINING = (
    f"--dataset_folder city {NETWORK} --groups_num 1 --epochs_num 2 --iterations_per_epoch 6 "
    f"--batch_size 4 --image_size 64 --lr 1e-3 --checkpoint_minutes 0.01 {RUN}"
)
DELF = (
    "--data-root town --training-dataset retrieval-SfM-120k --test-datasets toytown "
    "--arch resnet18 --query-size 8 --pool-size 20 --neg-num 2 --batch-size 2 --image-size 64 "
    f"--epochs 2 --test_freq 0 {RUN}"
)
STEPS = {
    "make_toy_city": f"make_toy_city.py city {CITY}",
    "make_toy_sfm": f"make_toy_sfm.py town {TOWN}",
    "get_data": "get_data.py ADDRESS/set.zip data",
    "train": f"train.py {TRAINING} --pretrained none --save_dir train",
    "train_only_local": (
        f"train_only_local.py {TRAINING} --resume_model logs/train/RUN/best_model.pth --top_k 3 "
        "--save_dir local"
    ),
    "eval": (
        "eval.py --dataset_folder city --resume_model logs/local/RUN/best_model.pth --top_k 5 "
        f"--save_dir eval {RUN}"
    ),
    "tune": "tune.py logs/eval/RUN --top_k 5 3 --num_features all --residual 4 8 --threads 1",
    "finetuning": f"-m example.finetuning models {DELF} --pretrained logs/train/RUN/best_model.pth",
    "attention": f"-m example.attention attention {DELF} --param-directory models",
    "extract_features": f"-m example.extract_features features {DELF} --param-directory attention",
    "get_descriptor": (
        "-m voc_tree.SIFT.get_descriptor features --data-root town --test-datasets toytown"
    ),
    "voc_tree.main": (
        "-m voc_tree.main trees --root-directory features/sift --test-datasets "
        "toytown --tree-height 2 --tree-branch 4"
    ),
}
LITTER = ("*.tmp", "*.part", "*.part.tag", "*.unpacking", "*.unfinished")


def result(folder: Path) -> str:
    """Of all that the commands left below a folder, what must be equal, whenever it is made."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = _without_times(path.relative_to(folder))
        if path.suffix in (".jpg", ".pkl"):
            found[name] = path.read_bytes()
        elif path.name == "rerank.toml":  # of settings that are equally good the faster is chosen
            found[name] = "there"
        elif path.parent.name == "counts":
            with np.load(path) as arrays:
                found[name] = arrays["hashes"], arrays["counts"]
        elif path.suffix == ".pth":
            found[name] = torch.load(path, weights_only=True)["model"]
        elif path.name == "losses.csv":
            found[name] = path.read_text()
        elif path.name == "result.json" and (path.parent / "rankings.npz").exists():
            run = Evaluation.open(path.parent)
            told = [
                (step.ranking.rows, step.ranking.similarity, step.figures) for step in run.steps
            ]
            found[name] = told, None if run.verified is None else run.verified.num_inliers
        elif path.name == "store.json":
            store = find_store(path.parent)
            found[name] = [(photo, store[photo]) for photo in store.names()]
    return digest(found)


def _without_times(path: Path) -> str:
    parts = path.parts
    if parts[0] == "logs":  # logs/SAVE_DIR/DATE
        parts = (*parts[:2], *parts[3:])
    return "/".join(parts)


def litter(folder: Path) -> list[str]:
    """Files that a killed process left, and nobody swept."""
    found = [path for pattern in LITTER for path in folder.rglob(pattern)]
    return sorted(str(path.relative_to(folder)) for path in found)


class Workplace:
    """A folder in which commands are run, with a server of what there is to download."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address

    def start(self, command: str, setup: str = "", after: str = "true") -> subprocess.Popen:
        """A command in a process group of its own.

        setup, after: shell commands before and after it, in a namespace of mounts of its own.
        """
        words = [self._filled(word) for word in command.split()]
        if words[0] != "-m":
            words[0] = str(AG / words[0])
        environment = {"PYTHONPATH": str(AG), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        words = [sys.executable, *words]
        if setup:
            lines = [f"{setup} || exit 9", shlex.join(words), "status=$?", f"{after} || exit 8"]
            words = ["unshare", "-m", "bash", "-c", "\n".join([*lines, "exit $status"])]
        return subprocess.Popen(
            words, cwd=self.folder, env=os.environ | environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def finish(self, command: str) -> tuple[int, str]:
        """Run a command to its end; its exit status and what it printed."""
        process = self.start(command)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def _filled(self, word: str) -> str:
        """The word with the server's address, and with the newest run for RUN."""
        word = word.replace("ADDRESS", self.address)
        before, found, after = word.partition("RUN")
        if not found or not before.endswith("/"):
            return word
        return f"{before}{max(os.listdir(self.folder / before))}{after}"


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """The address of a server of ``folder``, slow enough to be cut off."""

    class Slowly(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def copyfile(self, source, outputfile):
            with contextlib.suppress(ConnectionError):
                while block := source.read(1 << 16):
                    outputfile.write(block)
                    time.sleep(0.02)

    handler = functools.partial(Slowly, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


def write_download(folder: Path) -> None:
    """The archive that get_data.py fetches."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for number in range(20):
            archive.writestr(f"set/{number}.jpg", random.Random(number).randbytes(200_000))


def kill_all(kills: int, seed: int, folder: Path, names: list[str] | None = None) -> list[Row]:
    """Kill each command ``kills`` times; a row of the table for each.

    names: the commands that are killed, in the order of `STEPS`; the others before the last run
    undisturbed, since they make what the next ones take.
    """
    write_download(folder / "served")
    rows = []
    with server(folder / "served") as address:
        base = folder / "base"
        base.mkdir()
        for name, command in STEPS.items():
            before = folder / "before"
            shutil.copytree(base, before)
            start = time.monotonic()
            status, output = Workplace(base, address).finish(command)
            if status:
                raise RuntimeError(f"{name}: {output[-3000:]}")
            seconds = time.monotonic() - start
            if names is None or name in names:
                rng = random.Random(f"{name} {seed}")
                place = Workplace(folder / "tried", address)
                rows.append(_kill(name, command, kills, rng, seconds, before, place, result(base)))
            shutil.rmtree(before)
            if names is not None and name == names[-1]:
                break
    return rows


def _kill(
    name: str,
    command: str,
    kills: int,
    rng: random.Random,
    seconds: float,
    before: Path,
    place: Workplace,
    whole: str,
) -> Row:
    outcomes: Counter[str] = Counter()
    short: list[str] = []
    while kills > 0:
        shutil.copytree(before, place.folder)
        # Several kills in a row, then one that is let through to its end.
        moments: list[float] = []
        for _ in range(min(kills, rng.randint(1, 4))):
            moment = rng.uniform(0, 1) * seconds
            process = place.start(command)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=moment)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if process.returncode >= 0:  # it had ended; the same command would begin a new run
                break
            moments.append(moment)
        else:
            process = place.start(command)
            process.communicate(timeout=600)
        kills -= len(moments)
        if not moments:
            seconds *= 0.8  # it is quicker than it was
        told = f"killed after {', '.join(f'{moment:.2f}' for moment in moments)} s"
        problem = _problem(place.folder, process.returncode, whole)
        if not problem:
            outcomes["equal"] += len(moments)
        else:
            outcomes["fell short"] += max(len(moments), 1)
            short.append(f"{told}: {problem}")
        shutil.rmtree(place.folder)
    return Row.of(f"killed: {name}", outcomes, short)


def _problem(folder: Path, status: int, whole: str) -> str:
    if status:
        return f"exit status {status}"
    if left := litter(folder):
        return f"litter: {', '.join(left[:3])}"
    try:
        return "" if result(folder) == whole else "another end"
    except Exception as error:  # whatever reading raises is what is looked for here
        return f"what is left cannot be read: {error}"
