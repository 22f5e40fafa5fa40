"""The flags of show.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from retrieval.commands import shared_flags as shared
from retrieval.commands.flags import Asked, Parser
from retrieval.configs.describe import DelgConfig, ExtractConfig
from retrieval.configs.rank import MatchConfig, RerankConfig, VerifyConfig
from retrieval.configs.setting import argument, setting
from retrieval.errors import InputError

# What each picture is made of: photos, or queries and database images of a run by their numbers.
_NEEDED = {
    "attention": ("query",),
    "matches": ("query", "database"),
    "rerank": ("query",),
    "positives": (),
    "recalls": (),
    "losses": (),
}
_ENDINGS = (".png", ".jpg", ".jpeg")
# A photo that was named must be readable; one or two are described, by this process.
_NOT_HERE = ("rerank", "skip_bad_images", "num_workers", "infer_batch_size", "threads")
_OF_A_RUN = ("rerank", "positives", "recalls", "losses")


Picture = Literal["attention", "matches", "rerank", "positives", "recalls", "losses"]


@dataclass(frozen=True)
class ShowOptions(shared.NetworkFlags, shared.ResizeFlags, shared.ResourceFlags, group="Data"):
    """What show.py is asked for; without ``weights`` the features of ``run`` are to be used."""

    picture: Picture = argument("what to draw")
    query: str | None = setting(
        None, "a photo, or with --run the number of a query, from 0", "PHOTO", names=("image",)
    )
    database: str | None = setting(
        None,
        "the other photo, or its number in the database (default: the first prediction)",
        "PHOTO",
    )
    run: Path | None = setting(
        None,
        "run folder of eval.py or voc_tree.main: its photos, ranking and stored features (losses: "
        "of a training)",
        "RUN",
    )
    file: Path | None = setting(
        None,
        "file to write: the picture, .png or .jpg (default: its name .png)",
        "FILE",
        flag="output",
        group="Results",
    )
    number: int | None = setting(
        None,
        "keypoints to mark, or queries to show (default: 20; of positives 8)",
        flag="count",
        group="Results",
        least=1,
    )
    rerank: RerankConfig = field(default_factory=RerankConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output.suffix.lower() not in _ENDINGS:
            expected = f"expected a file name with {' or '.join(_ENDINGS)}"
            raise InputError(f"--output {self.output}: {expected}")
        if self.output.is_dir():
            raise InputError(f"--output {self.output} is a folder: name a file in it")
        _ = self.shown  # says what is missing

    @property
    def output(self) -> Path:
        """The file of the picture."""
        return self.file or Path(f"{self.picture}.png")

    @property
    def count(self) -> int:
        """How many keypoints are marked, or queries shown."""
        return self.number or (8 if self.picture == "positives" else 20)

    @property
    def shown(self) -> tuple[str, ...]:
        """The photos' paths, or with ``run`` their numbers there; InputError if one is missing."""
        values = {name: getattr(self, name) for name in _NEEDED[self.picture]}
        if self.run is not None and self.picture == "matches" and self.database is None:
            del values["database"]  # the first prediction
        missing = [f"--{name}" for name, value in values.items() if value is None]
        if missing:
            raise InputError(f"{self.picture} needs {' and '.join(missing)}")
        return tuple(values.values())

    def numbers(self) -> tuple[int, ...]:
        """``shown`` as numbers; InputError for words that are none."""
        try:
            return tuple(map(int, self.shown))
        except ValueError:
            raise InputError(
                f"{' '.join(self.shown)}: with --run, photos are named by their numbers, from 0"
            ) from None


def read_show(description: str | None, argv: Sequence[str] | None) -> ShowOptions:
    """Read the command line of show.py; InputError for a picture whose photos are not named."""
    parser = Parser(description)
    parser.add(ShowOptions, but=_NOT_HERE)
    parser.add(DelgConfig, but=("train_all_layers",))
    parser.add(MatchConfig)
    parser.add(VerifyConfig)
    asked = parser.read(argv)
    options = asked.config(
        ShowOptions,
        weights=_weights(asked),
        written=asked.given(DelgConfig),
        extract=shared.read_extraction(asked),
    )
    if options.run is not None:
        _refuse_settings(asked)
    return options


def _refuse_settings(asked: Asked) -> None:
    """InputError for settings that a run has already."""
    given = {**asked.given(ExtractConfig), **asked.given(MatchConfig), **asked.given(VerifyConfig)}
    given |= {name: True for name in ("resize_test_imgs", "longest_side") if asked.get(name)}
    if given:
        raise InputError(
            f"--{next(iter(given))} and --run exclude each other: the run's own settings are shown "
            "(tune.py tries others)"
        )


def _weights(asked: Asked) -> str:
    named = asked.get("resume_model") is not None or asked.get("pretrained") is not None
    if asked.get("run") is not None and not named:
        return ""
    if asked.get("picture") in _OF_A_RUN:
        raise InputError(f"{asked.get('picture')} shows a run: give --run RUN, and no weights")
    return shared.read_weights(asked)
