"""Writes a toy city, a procedural data set in the layout of SF-XS: `make_toy_city.py DIR`."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from toy_city import ToyCityConfig, make_toy_city, plan_city

HELP = {
    "seed": "another seed, another city",
    "image_size": "width and height of the pictures, in pixels",
    "train_streets": "streets to train on",
    "val_streets": "streets to validate on",
    "test_streets": "streets to test on",
    "cells_per_street": "training cells along a street, one every 50 m, six classes each",
    "images_per_class": "training pictures of each class",
    "database_spacing": "metres between the stops of the database's car (eight pictures each)",
    "val_queries": "queries to validate on",
    "test_queries": "queries to test on",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, writes the city, says where it is."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to write")
    for name, default in asdict(ToyCityConfig()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=HELP[name])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--force", action="store_true", help="replace a city of another kind")
    flags = vars(parser.parse_args(argv))
    folder, workers, force = (flags.pop(name) for name in ("folder", "workers", "force"))
    config = ToyCityConfig(**flags)
    pictures = sum(len(plan.views) for plan in plan_city(config))
    with tqdm(total=pictures, unit="image", desc=f"{folder}", delay=0.5) as bar:
        written = make_toy_city(folder, config, workers=workers, force=force, progress=bar.update)
    print(f"{folder}: {pictures} images" + ("" if written else ", already there, left as they are"))


if __name__ == "__main__":
    # Here, since the rendering processes import this file too, and they need no network.
    from retrieval.commands.script import run

    run(main)
