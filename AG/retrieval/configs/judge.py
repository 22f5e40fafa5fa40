"""How answers are judged: which photos, which answers are right, how a network is evaluated."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from retrieval.configs.describe import ExtractConfig, PcaConfig
from retrieval.configs.learn import SEED
from retrieval.configs.rank import RerankConfig
from retrieval.configs.setting import Config, setting
from retrieval.errors import InputError

RECALL_VALUES = (1, 5, 10, 20)


POSITIONS = ("auto", "names", "exif", "frames", "folders")
POSITION_FILES = (".csv", ".geojson", ".json")


@dataclass(frozen=True)
class PositivesConfig(Config, group="Data"):
    """Where photos were taken, and which database photos are right answers by that."""

    positive_dist_threshold: float = setting(
        25.0, "a database photo taken within this distance is a right answer", "METRES", above=0
    )
    positive_angle: float | None = setting(
        None, "it must also look in a direction within this angle (default: in any)", "DEGREES"
    )
    positions: str = setting(
        "auto",
        "where a photo's position comes from. names: metres between @; exif: the photo's own GPS "
        "data; frames: the number in its name, of two traverses; folders: its folder is its place; "
        "a .csv or .geojson FILE; auto: names, or exif where these have none",
        "SOURCE",
    )
    frame_tolerance: int | None = setting(
        None,
        "frames at most this far apart show the same place; takes positions from frames",
        "FRAMES",
        least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions not in POSITIONS and self.positions_file is None:
            raise InputError(
                f"--positions {self.positions}: expected one of {', '.join(POSITIONS)}, or a file "
                f"({', '.join(POSITION_FILES)})"
            )
        if self.frame_tolerance is not None and self.positions not in ("auto", "frames"):
            raise InputError(
                f"--frame_tolerance and --positions {self.positions} exclude each other: leave one "
                "out"
            )
        if self.positions == "frames" and self.frame_tolerance is None:
            raise InputError("--positions frames needs --frame_tolerance, a number of frames")

    @property
    def positions_file(self) -> Path | None:
        """The file that tells the positions, if one does."""
        path = Path(self.positions)
        return path if path.suffix.lower() in POSITION_FILES else None


@dataclass(frozen=True)
class Source:
    """Where a photo set lies, in one folder (``dataset``) or in two, and what is right in it.

    What opens a set again: `open_set`. positives_file: of two folders, instead of positions.
    labels: False for sets in which nothing is known to be right. keep_self: photos may be their
    own answers. split: train, val or test, where ``dataset`` holds the photos of more than one.
    """

    dataset: Path | None = None
    database: Path | None = None
    queries: Path | None = None
    positives_file: Path | None = None
    positives: PositivesConfig = field(default_factory=PositivesConfig)
    labels: bool = True
    keep_self: bool = False
    split: str = ""


@dataclass(frozen=True)
class ConfidenceConfig(Config, group="Results"):
    """How sure first answers are, and which are withheld."""

    confidence_from: Path | None = setting(
        None,
        "learn how sure first answers are from this run, on other photos with labels (default: by "
        "its inliers and those of the best photo of another place)",
        "RUN",
    )
    min_confidence: float = setting(
        0.0, "withhold first answers that are less sure", "P", least=0, most=1
    )
    max_wrong: float | None = setting(
        None,
        "withhold so many that at most this share of wrong first answers is given, instead of "
        "--min_confidence; needs --confidence_from",
        "SHARE",
        above=0,
        most=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_wrong is None:
            return
        if self.confidence_from is None:
            raise InputError("--max_wrong needs --confidence_from RUN, a run with labels")
        if self.min_confidence:
            raise InputError("--max_wrong and --min_confidence exclude each other: leave one out")


@dataclass(frozen=True)
class EvaluationConfig(Config, group="Results"):
    """How a network is evaluated: descriptors, ranking, re-ranking, figures.

    extract: how photos are described.
    rerank:  how rankings are re-ranked by local features; None: not at all.
    pca:     a projection of local descriptors to learn first.
    """

    extract: ExtractConfig = field(default_factory=ExtractConfig)
    rerank: RerankConfig | None = field(default_factory=RerankConfig)
    pca: PcaConfig = field(default_factory=PcaConfig)
    recall_values: tuple[int, ...] = setting(
        RECALL_VALUES, "the N for which recall@N is told", least=1
    )
    all_local_features: bool = setting(
        False,
        "extract the local features of all photos, not of those alone that are re-ranked, so that "
        "voc_tree.main can search them",
        group="Local features",
    )
    seed: int = setting(0, SEED, group="Run", least=0)

    def decisive(self) -> dict[str, Any]:
        """All that decides the figures of sound photos, as plain values."""
        values = asdict(self)
        for name in ("skip_bad_images", "max_pixels"):
            del values["extract"][name]
        return values
