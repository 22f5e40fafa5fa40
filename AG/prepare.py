"""Understand a folder of photos, show what was understood and what is odd, and write a manifest.

The manifest says which photos make the data set, where they were taken, and what is right by that;
every script takes it as --dataset_folder. No photo is renamed, copied or changed.

Examples:
    python3 AG/prepare.py holiday
    python3 AG/prepare.py drives --frame_tolerance 2 --output drives.json
"""

from retrieval.commands import prepare_flags, script

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(prepare_flags.read_preparation, __doc__)

import logging
from collections.abc import Iterator, Sequence

import numpy as np

from retrieval.configs.judge import Source
from retrieval.data.doctor import examine
from retrieval.data.manifest import Manifest, Part
from retrieval.data.photo_sets import PhotoSet, open_part
from retrieval.data.positives import chance
from retrieval.data.preparing import prepare
from retrieval.drawing import figures, place_map

log = logging.getLogger("prepare")

_SHOWN = 3  # names of odd photos


def main(argv: Sequence[str] | None = None) -> None:
    """Understand, examine, draw, write."""
    asked = prepare_flags.read_preparation(__doc__, argv)
    manifest, unused = prepare(
        asked.folder, asked.right, asked.positives_file, hold_out=asked.hold_out
    )
    for line in layout_in_words(manifest):
        log.info("%s", line)
    if unused is not None:
        log.info("%s has no say, since positions are known (--positives FILE: it has)", unused)
    splits = [name for name in manifest.parts or ("test",) if name != "train"]
    opened = {
        split: open_part(manifest, Source(asked.output, positives=asked.right, split=split))
        for split in splits
    }
    for split, photos in opened.items():
        for line in answers_in_words(split, photos):
            log.info("%s", line)
    findings = examine(manifest, opened, asked.classes)
    log.info("odd: %s", "nothing" if not findings else "")
    for what, names in findings:
        more = f" … ({len(names) - _SHOWN} more)" * (len(names) > _SHOWN)
        log.info("  %d %s: %s%s", len(names), what, ", ".join(names[:_SHOWN]), more)
    picture = asked.output.with_suffix(".png")
    figures.save(place_map.draw(manifest, opened), picture)
    manifest.save(asked.output)
    log.info("map: %s\nmanifest: %s", picture, asked.output)
    name = "train.py" if "train" in manifest.parts else "eval.py"
    log.info("next: python3 AG/%s --dataset_folder %s", name, asked.output)


def layout_in_words(manifest: Manifest) -> Iterator[str]:
    """What lies where, and how its positions are known."""
    yield str(manifest.folder)
    if manifest.revisited:
        yield "layout: a set like revisited Oxford, jpg/ with its ground truth"
    for split, part in manifest.parts.items():
        count = len(part.database.paths)
        if part.queries is not None:
            yield f"{split}: {len(part.queries.paths)} queries, {count} database photos"
        elif split == "train":
            yield f"{split}: {count} photos to make classes of"
        else:
            yield f"{split}: {count} photos, each searched among the others"
        yield f"  {positions_in_words(manifest, part)}"


def positions_in_words(manifest: Manifest, part: Part) -> str:
    """Where positions come from, how far they reach, and how many headings there are."""
    if manifest.positives_file is not None:
        return f"right answers: as {manifest.positives_file} says"
    taken = part.database.taken
    if taken is None:
        return "positions: none, in names, EXIF data or folders (--positions FILE.csv tells them)"
    source = f"positions: {taken.source}"
    if taken.kind == "labels":
        return f"{source}; {len(set(taken.labels))} places"
    low, high = taken.positions.utm.min(axis=0), taken.positions.utm.max(axis=0)
    if taken.kind == "frames":
        return f"{source}, {low[0]:.0f} to {high[0]:.0f}"
    width, height = high - low
    zones = ", ".join(str(zone or "unknown") for zone in np.unique(taken.positions.zones))
    headings = int(np.isfinite(taken.positions.heading).sum())
    return (
        f"{source}, {width:.0f} × {height:.0f} m, zones of UTM: {zones}; "
        f"headings: {headings} of {len(taken.labels)}"
    )


def answers_in_words(split: str, photos: PhotoSet) -> Iterator[str]:
    """How many right answers the queries have, by each protocol."""
    if not photos.ground_truth:
        yield f"{split}: nothing is known to be right"
    for name, truth in photos.ground_truth.items():
        counts = [len(rows) for rows in truth.positives]
        yield (
            f"{split}, right answers ({name}): {np.median(counts):g} a query in the median, "
            f"{min(counts)} to {max(counts)}; a random first answer is right for "
            f"{100 * chance(truth, len(photos.database)):.1f} % of the queries"
        )


if __name__ == "__main__":
    script.run(main)
