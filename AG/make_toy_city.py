"""Write a toy city, a procedural data set in the layout of SF-XS.

Examples:
    python3 AG/make_toy_city.py cache/toy_city
    python3 AG/make_toy_city.py small_city --image_size 112 --train_streets 4 --num_workers 2
"""

from retrieval.commands import script
from toy_city import options

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(options.read_city, __doc__)

from collections.abc import Sequence

from tqdm import tqdm

from toy_city.city import make_toy_city
from toy_city.plan import plan_city


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, writes the city, says where it is."""
    asked = options.read_city(__doc__, argv)
    pictures = sum(len(plan.views) for plan in plan_city(asked.config))
    with tqdm(total=pictures, unit="image", desc=f"{asked.folder}", delay=0.5) as bar:
        written = make_toy_city(
            asked.folder,
            asked.config,
            workers=asked.num_workers,
            force=asked.force,
            progress=bar.update,
        )
    said = "" if written else ", already there, left as they are"
    print(f"{asked.folder}: {pictures} images{said}")


if __name__ == "__main__":
    script.run(main)
