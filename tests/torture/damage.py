"""Damaged and hostile files: what a file holds is changed at random, and its reader is called.

It must end in the project's own error, or give what the whole file gives. Where a file carries no
checksum (photos, ground truth, tables that people write) other content cannot be told from damage:
there it may also give something else, but nothing may crash, hang, or eat the memory.

Each kind is worked on in a process of its own with bounded memory; when that dies, the next one
goes on behind the file that killed it.
"""

import hashlib
import json
import random
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tests.torture import examples, hostile
from tests.torture.table import Row

from retrieval.errors import InputError

MEMORY = 2 << 30  # bytes beyond what the process has at its start
SECONDS = 30  # for one file


class Kind(NamedTuple):
    """Files of one kind.

    make: writes whole files below a folder, and returns those to damage.
    read: reads what `make` wrote; what it returns is compared.
    exact: whether other content falls short, since the file carries a checksum.
    change: a whole file's bytes to those that are tried.
    """

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], Any]
    exact: bool
    change: Callable[[bytes, random.Random], bytes]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes, changed in one way, as disks, cables and careless hands do."""
    size = len(data)
    at = rng.randrange(size)
    length = min(size - at, 1 << rng.randrange(13))
    how = rng.randrange(8)
    if how == 0:  # a bit flips
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if how == 1:  # a block of zeros
        return data[:at] + bytes(length) + data[at + length :]
    if how == 2:  # cut short
        return data[:at]
    if how == 3:  # a block is missing
        return data[:at] + data[at + length :]
    if how == 4:  # a block comes twice
        return data[: at + length] + data[at:]
    if how == 5:  # noise instead
        return data[:at] + rng.randbytes(length) + data[at + length :]
    if how == 6:  # a number, or a word, becomes another
        return edited(data, rng)
    other = rng.randrange(size)  # two blocks change places
    first, second = sorted((at, other))
    length = min(length, second - first, size - second)
    middle = data[first + length : second]
    return (
        data[:first]
        + data[second : second + length]
        + middle
        + data[first : first + length]
        + data[second + length :]
    )


KINDS = {
    "photos": Kind(examples.photos, examples.read_photos, False, damaged),
    "checkpoints": Kind(examples.checkpoints, examples.read_checkpoints, True, damaged),
    "weights of others": Kind(
        examples.foreign_weights, examples.read_foreign_weights, True, damaged
    ),
    "feature stores": Kind(examples.store, examples.read_store, True, damaged),
    "trees": Kind(examples.trees, examples.read_trees, True, damaged),
    "runs": Kind(examples.runs, examples.read_runs, True, damaged),
    "rerank.toml": Kind(examples.rerank_file, examples.read_rerank_file, True, damaged),
    "cached tables": Kind(examples.tables, examples.read_tables, True, damaged),
    "training folders": Kind(examples.training, examples.read_training, False, damaged),
    "ground truth": Kind(examples.ground_truth, examples.read_ground_truth, False, damaged),
    "positives": Kind(examples.positives, examples.read_positives, False, damaged),
    "hostile pickles": Kind(
        hostile.make, hostile.read_hostile_pickle, False, hostile.hostile_pickle
    ),
    "hostile archives": Kind(
        hostile.make, hostile.read_hostile_archive, False, hostile.hostile_archive
    ),
}


_VALUES = (b"-1", b"0", b"NaN", b"1e999", b"99999999999999999999", b"null", b'"x"', b"[]", b"{}")


def edited(data: bytes, rng: random.Random) -> bytes:
    """Text in which a run of digits or letters has become another value."""
    kind = bytes.isdigit if rng.random() < 0.7 else bytes.isalpha
    places = [i for i in range(len(data)) if kind(data[i : i + 1])]
    if not places:
        return data[:-1]
    start = stop = rng.choice(places)
    while start > 0 and kind(data[start - 1 : start]):
        start -= 1
    while stop < len(data) and kind(data[stop : stop + 1]):
        stop += 1
    return data[:start] + rng.choice(_VALUES) + data[stop:]


def digest(value: Any) -> str:
    """Equal for equal values, whatever arrays, tensors and containers they are made of."""
    found = hashlib.sha256()

    def add(each: Any) -> None:
        if isinstance(each, torch.Tensor):
            each = each.numpy()
        if isinstance(each, np.ndarray):
            found.update(
                f"{each.dtype}{each.shape}".encode() + np.ascontiguousarray(each).tobytes()
            )
        elif is_dataclass(each) and not isinstance(each, type):
            add(vars(each))
        elif isinstance(each, dict):
            for name in sorted(each, key=repr):
                found.update(repr(name).encode())
                add(each[name])
        elif isinstance(each, list | tuple):
            found.update(f"[{len(each)}".encode())
            for part in each:
                add(part)
        else:
            found.update(repr(each).encode())

    add(value)
    return found.hexdigest()


def work(name: str, count: int, seed: int, first: int, folder: Path) -> None:
    """Damage ``count`` files of a kind, from number ``first`` on; print a line for each."""
    kind = KINDS[name]
    files = kind.make(folder)
    whole = digest(kind.read(folder))
    contents = {file: file.read_bytes() for file in files}
    there = {path for path in folder.rglob("*") if path.is_file()}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.signal(signal.SIGALRM, _too_long)
    for number in range(first, count):
        rng = random.Random(f"{name} {seed} {number}")
        file = files[number % len(files)]
        print(json.dumps({"number": number, "file": file.name}), flush=True)
        file.write_bytes(kind.change(contents[file], rng))
        outcome, why = _outcome(kind, folder, whole)
        print(json.dumps({"number": number, "outcome": outcome, "why": why}), flush=True)
        for made in [path for path in folder.rglob("*") if path.is_file() and path not in there]:
            made.unlink()
        for each, data in contents.items():
            each.write_bytes(data)


def _outcome(kind: Kind, folder: Path, whole: str) -> tuple[str, str]:
    signal.alarm(SECONDS)
    try:
        found = digest(kind.read(folder))
    except InputError as error:
        return "own error", str(error)
    except Exception as error:  # whatever a reader raises is what is looked for here
        return "fell short", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    if found == whole:
        return "equal", ""
    return ("fell short", "read otherwise, without a word") if kind.exact else ("other content", "")


def _too_long(*_: object) -> None:
    raise TimeoutError(f"longer than {SECONDS} s")


def fuzz(name: str, count: int, seed: int, folder: Path) -> Row:
    """Damage ``count`` files of a kind; the row of the table."""
    outcomes: Counter[str] = Counter()
    short: list[str] = []
    first = 0
    while first < count:
        place = folder / f"{name.replace(' ', '_')}_{first}"
        place.mkdir(parents=True)
        words = [name, str(count), str(seed), str(first), str(place)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.torture.damage", *words], capture_output=True, text=True
        )
        told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        begun = {each["number"]: each["file"] for each in told if "file" in each}
        for each in told:
            if "outcome" in each:
                outcomes[each["outcome"]] += 1
                if each["outcome"] == "fell short":
                    short.append(f"{begun[each['number']]} ({each['number']}): {each['why']}")
        ended = {each["number"] for each in told if "outcome" in each}
        died = sorted(begun.keys() - ended)
        if done.returncode and not died:
            raise RuntimeError(f"{name}: {done.stdout[-500:]}{done.stderr[-2000:]}")
        if died:
            outcomes["fell short"] += 1
            short.append(f"{begun[died[0]]} ({died[0]}): the process died ({done.returncode})")
        first = max(begun, default=count) + 1
    return Row.of(name, outcomes, short)


if __name__ == "__main__":
    kind_name, number, chosen, begin, where = sys.argv[1:]
    work(kind_name, int(number), int(chosen), int(begin), Path(where))
