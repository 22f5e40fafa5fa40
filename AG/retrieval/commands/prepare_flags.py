"""The flags of prepare.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retrieval.commands.flags import Parser
from retrieval.configs.judge import PositivesConfig
from retrieval.configs.learn import GroupConfig
from retrieval.configs.setting import Config, argument, setting
from retrieval.errors import InputError


@dataclass(frozen=True)
class PrepareOptions(Config, group="Data"):
    """All that prepare.py is asked for."""

    folder: Path = argument("folder of photos")
    positives_file: Path | None = setting(
        None, "right answers of two folders, as .csv, .json or .npy", "FILE", flag="positives"
    )
    hold_out: bool = setting(
        False, "divide photos in one folder into train and val, as train.py does"
    )
    file: Path | None = setting(
        None,
        "file to write: the manifest, .json; its map is .png (default: manifests/NAME.json)",
        "FILE",
        flag="output",
        group="Results",
    )
    right: PositivesConfig = field(default_factory=PositivesConfig)
    classes: GroupConfig = field(default_factory=GroupConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.file is not None and self.file.suffix.lower() != ".json":
            raise InputError(f"--output {self.file}: a manifest is a .json file")
        if self.hold_out and self.positives_file is not None:
            raise InputError("--hold_out and --positives exclude each other: leave one out")

    @property
    def output(self) -> Path:
        """The manifest to write."""
        name = self.folder.absolute().name or "photos"
        return self.file or Path("manifests") / f"{name}.json"


def read_preparation(description: str | None, argv: Sequence[str] | None) -> PrepareOptions:
    """Read the command line of prepare.py."""
    parser = Parser(description)
    parser.add(PrepareOptions, but=("N", "L", "groups_num"))
    return parser.read(argv).config(PrepareOptions)
