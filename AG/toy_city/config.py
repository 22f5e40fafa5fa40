"""The toy data sets: how large they are."""

from dataclasses import dataclass

from retrieval.configs.learn import SEED, SIZE
from retrieval.configs.setting import Config, setting

CELL_SPACING = 50.0  # metres between the training cells of a street of the toy city
MOST_LANDMARKS = 8  # of a street of the toy retrieval-SfM-120k

TRAIN, VAL, TEST = (f"streets to {verb}" for verb in ("train on", "validate on", "test on"))


@dataclass(frozen=True)
class ToyCityConfig(Config, group="Data"):
    """What a toy city consists of. Lengths in metres; pictures are `image_size` pixels square."""

    seed: int = setting(0, f"{SEED}: another seed, another city", group="Run", least=0)
    image_size: int = setting(224, f"{SIZE}: width and height", "PIXELS", group="Photos", least=32)
    train_streets: int = setting(8, TRAIN, least=1)
    val_streets: int = setting(2, VAL, least=1)
    test_streets: int = setting(4, TEST, least=1)
    cells_per_street: int = setting(
        4, "training cells along a street, one every 50 metres, six classes each", least=1
    )
    images_per_class: int = setting(10, "training photos of each class", least=10)
    database_spacing: float = setting(
        10.0,
        "distance of the places at which database photos are taken, eight at each; at most 20, so "
        "that every query has a database photo within 25 metres",
        "METRES",
        least=1,
        most=20,
    )
    val_queries: int = setting(150, "queries to validate with", least=1)
    test_queries: int = setting(500, "queries to test with", least=1)

    @property
    def street_length(self) -> float:
        """Metres of a street along which cameras stand."""
        return self.cells_per_street * CELL_SPACING


@dataclass(frozen=True)
class ToySfmConfig(Config, group="Data"):
    """What a toy retrieval-SfM-120k consists of."""

    seed: int = setting(0, f"{SEED}: another seed, another town", group="Run", least=0)
    image_size: int = setting(256, f"{SIZE}: the longest side", "PIXELS", group="Photos", least=64)
    train_streets: int = setting(5, f"{TRAIN}: each of at most {MOST_LANDMARKS} landmarks", least=1)
    val_streets: int = setting(2, VAL, least=1)
    test_streets: int = setting(2, f"{TEST}: in each test set", least=1)
    images_per_landmark: int = setting(
        10, "photos of a landmark (in a test set: for the database)", least=4
    )
    queries_per_landmark: int = setting(1, "queries of a landmark in a test set", least=1)
