"""Folders of photos, one a scene, as a test set of the revisited form: every photo is a query.

    python3 benchmarks/scenes_as_test_set.py $DATA/scenes DATA_ROOT/test/scenes

Right answers are the other photos of its folder; the photo itself is junk. The photos are linked,
not copied.
"""

import argparse
import json
from pathlib import Path

from retrieval.data import images


def main() -> None:
    """Write jpg/ and gnd_NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("scenes", type=Path, help="folder with a folder for each scene")
    parser.add_argument("test_set", type=Path, help="folder to write; its name is the set's")
    asked = parser.parse_args()
    photos = images.list_images(asked.scenes)
    names = ["_".join(photo.relative_to(asked.scenes).with_suffix("").parts) for photo in photos]
    (asked.test_set / "jpg").mkdir(parents=True, exist_ok=True)
    for photo, name in zip(photos, names, strict=True):
        link = asked.test_set / "jpg" / f"{name}.jpg"
        link.unlink(missing_ok=True)
        link.symlink_to(photo.resolve())
    rows = range(len(photos))
    gnd = [
        {
            "easy": [row for row in rows if photos[row].parent == photo.parent and row != query],
            "hard": [],
            "junk": [query],
        }
        for query, photo in enumerate(photos)
    ]
    content = {"imlist": names, "qimlist": names, "gnd": gnd}
    (asked.test_set / f"gnd_{asked.test_set.name}.json").write_text(json.dumps(content))
    print(f"{asked.test_set}: {len(photos)} photos of {len({p.parent for p in photos})} scenes")


if __name__ == "__main__":
    main()
