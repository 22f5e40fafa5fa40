"""Too little room, and too many at once: full disks, a small /dev/shm, two of one command.

A command may end well, or say what is missing (exit status 2); no traceback, no hang, nothing lost.
The room is made scarce by mounts in a namespace of its own, for which one must be root on Linux.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tests.torture import kills
from tests.torture.kills import AG, ROOT, STEPS, Workplace, result
from tests.torture.table import Row

from retrieval import checkpoint

SECONDS = 240  # after which a command hangs
# Megabytes of disk that a command has left.
ROOMS = (0.05, 0.3, 1, 4, 12, 40, 60)


def can_mount() -> bool:
    """Whether mounts can be made here."""
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True)
    return done.returncode == 0


def judged(done: subprocess.Popen, output: str) -> str:
    """What is wrong with how a command ended; nothing if it ended well or said what is missing."""
    if done.returncode not in (0, 2):
        return f"exit status {done.returncode}: {output[-300:]}"
    if "Traceback" in output:
        return f"a traceback: {output[-300:]}"
    if done.returncode == 2 and "error" not in output:
        return f"no word of what is missing: {output[-300:]}"
    return ""


def _waited(process: subprocess.Popen) -> str:
    """What is wrong with how it ends, once it has; nothing if nothing is."""
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "it hangs"
    return judged(process, output)


def full_disks(folder: Path, names: tuple[str, ...]) -> Row:
    """Each command on ever larger disks, each too small until it is not.

    Whatever checkpoints it leaves there must be whole.
    """
    outcomes: Counter[str] = Counter()
    short = []
    disk = folder / "disk"
    for name, place in _bases(folder, names):
        disk.mkdir(exist_ok=True)
        for room in ROOMS:
            size = int(room * (1 << 20)) + _size(place.folder)
            process = place.start(
                STEPS[name],
                f"mount -t tmpfs -o size={size} tmpfs {disk} && cp -r {place.folder}/. {disk} && "
                f"cd {disk}",
                f"PYTHONPATH={AG}:{ROOT} {sys.executable} -m tests.torture.scarcity {disk}",
            )
            problem = _waited(process)
            outcomes["fell short" if problem else _how(process)] += 1
            if problem:
                short.append(f"{name}, {room} MB: {problem}")
            if process.returncode == 0:
                break
    return Row.of("full disks", outcomes, short)


def _how(process: subprocess.Popen) -> str:
    return "equal" if process.returncode == 0 else "own error"


def _size(folder: Path) -> int:
    """Bytes of all files below, in blocks."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in files) + (1 << 16)


def _bases(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, Workplace]]:
    """Each of the commands, with a folder that holds what it takes."""
    kills.write_download(folder / "served")
    with kills.server(folder / "served") as address:
        base = Workplace(folder / "base", address)
        base.folder.mkdir()
        for name, command in STEPS.items():
            if name in names:
                yield name, base
            status, output = base.finish(command)
            if status:
                raise RuntimeError(f"{name}: {output[-2000:]}")
            if name == [each for each in STEPS if each in names][-1]:
                return


def two_at_once(folder: Path, names: tuple[str, ...]) -> Row:
    """Two of one command in one folder: what they leave is what one leaves.

    One of them may say that the other is at work.
    """
    outcomes: Counter[str] = Counter()
    short = []
    both, one = folder / "both", folder / "one"
    for name, place in _bases(folder, names):
        shutil.copytree(place.folder, one)
        Workplace(one, place.address).finish(STEPS[name])
        for number in range(3):
            shutil.copytree(place.folder, both)
            workplace = Workplace(both, place.address)
            processes = [workplace.start(STEPS[name]) for _ in range(2)]
            problems = [problem for process in processes if (problem := _waited(process))]
            ended = [_how(process) for process in processes]
            if not problems and "equal" not in ended:
                problems = ["neither of them ended well"]
            if not problems and result(both) != result(one):
                problems = ["they leave something else than one does"]
            outcomes["fell short" if problems else max(ended)] += 1
            short += [f"{name} ({number}): {problem}" for problem in problems]
            shutil.rmtree(both)
        shutil.rmtree(one)
    return Row.of("two at once", outcomes, short)


def small_shm(folder: Path) -> Row:
    """eval.py where helper processes have one megabyte to hand photos over in."""
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for number in range(24):
        Image.effect_noise((768, 768), 90).convert("RGB").save(photos / f"{number}.jpg")
    command = (
        "eval.py --database_folder photos --queries_folder photos --no_labels --no_rerank "
        "--backbone resnet18 --pretrained none --num_workers 2 --infer_batch_size 8 --device cpu"
    )
    process = Workplace(folder, "").start(command, "mount -t tmpfs -o size=1m tmpfs /dev/shm")
    problem = _waited(process)
    outcome = "fell short" if problem else _how(process)
    return Row.of("small /dev/shm", Counter([outcome]), [problem] if problem else [])


def check_checkpoints(folder: Path) -> None:
    """InputError where one below a folder is not whole."""
    for path in folder.rglob("*.pth"):
        checkpoint.load(path)


if __name__ == "__main__":
    check_checkpoints(Path(sys.argv[1]))
