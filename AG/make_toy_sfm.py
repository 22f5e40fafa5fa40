"""Write a toy data set in retrieval-SfM-120k's layout, with revisited test sets, from the toy city.

    FOLDER/train/retrieval-SfM-120k/{ims/, retrieval-SfM-120k.pkl, retrieval-SfM-120k-whiten.pkl}
    FOLDER/test/NAME/{jpg/, gnd_NAME.pkl}

Examples:
    python3 AG/make_toy_sfm.py cache/toy_sfm
    python3 AG/make_toy_sfm.py small --train_streets 2 --image_size 128 --test_datasets one,two
"""

from retrieval.commands import script
from toy_city import options

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(options.read_sfm, __doc__)

import os
from collections.abc import Sequence
from pathlib import Path

from toy_city.sfm import make_toy_sfm


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, write the data set, say where it is."""
    asked = options.read_sfm(__doc__, argv)
    folder = Path(os.path.abspath(asked.folder))
    written = make_toy_sfm(folder, asked.config, asked.test_datasets, asked.num_workers)
    count = sum(path.is_file() for path in folder.rglob("*")) - 3 - len(asked.test_datasets)
    said = "" if written else ", already there, left as they are"
    print(f"{asked.folder}: {count} photos{said}")


if __name__ == "__main__":
    script.run(main)
