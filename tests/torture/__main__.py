"""Break the project in every way that is known, and print one table.

    python -m tests.torture [--share 1] [--seed 0]

``--share 0.1`` tries a tenth of it. Exit status 1 if anything fell short.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.torture import damage, kills, scarcity, table

FILES = {  # how many are damaged; photos alone 10,000
    "photos": 10_000,
    "checkpoints": 1_000,
    "weights of others": 1_000,
    "feature stores": 2_000,
    "trees": 2_000,
    "runs": 1_000,
    "rerank.toml": 500,
    "cached tables": 500,
    "training folders": 1_000,
    "ground truth": 2_000,
    "positives": 500,
    "hostile pickles": 500,
    "hostile archives": 200,
}
KILLS = 10  # of each command


def main() -> None:
    """Kill, damage, starve; print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    start = time.monotonic()
    rows: list[table.Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def note(*found: table.Row) -> None:
            rows.extend(found)
            minutes = (time.monotonic() - start) / 60
            print(f"{minutes:.0f} min: {', '.join(row.name for row in found)}", flush=True)

        for kind, count in FILES.items():
            number = max(1, round(count * asked.share))
            note(damage.fuzz(kind, number, asked.seed, folder / "damage"))
        note(*kills.kill_all(max(1, round(KILLS * asked.share)), asked.seed, folder / "kills"))
        every = ("make_toy_city", "get_data", "train", "eval", "get_descriptor", "voc_tree.main")
        note(scarcity.two_at_once(folder / "two", every))
        if scarcity.can_mount():
            note(scarcity.full_disks(folder / "full", every))
            note(scarcity.small_shm(folder / "shm"))
        else:
            print("full disks, small /dev/shm: left out, since no mounts can be made here")
    print(table.in_words(rows))
    sys.exit(any(row.outcomes["fell short"] for row in rows))


if __name__ == "__main__":
    main()
