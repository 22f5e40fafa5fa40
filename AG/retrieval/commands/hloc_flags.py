"""The flags of hloc_files.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retrieval.commands.flags import Parser
from retrieval.commands.script import LOGS
from retrieval.commands.shared_flags import PhotoSetFlags
from retrieval.configs.setting import argument, setting
from retrieval.errors import InputError

_OF_EXPORT = ("num_matched", "only_inliers")
_OF_IMPORT = ("global_feats", "image_dir", "save_dir")


@dataclass(frozen=True)
class HlocOptions(PhotoSetFlags, group="Data"):
    """What hloc_files.py is asked for."""

    action: Literal["export", "import"] = argument("which way")
    path: Path = argument(
        "export: a run folder or feature store; import: hloc's features.h5", "FROM"
    )
    folder: Path = argument("export: folder to write to; import: folder of all features", "TO")
    image_dir: Path | None = setting(
        None,
        "import: hloc's folder of photos, which the file's names are relative to (default: the "
        "set's, which holds database and queries)",
    )
    global_feats: Path | None = setting(
        None,
        "import: hloc's global-feats.h5: rank by it, re-rank by the local features, and write a "
        "run folder",
        "FILE",
        is_file=True,
    )
    num_matched: int = setting(
        20, "export: predictions of each query in pairs.txt", group="Results", least=1
    )
    only_inliers: bool = setting(
        False, "export: only matches that verification holds for right", group="Results"
    )
    save_dir: Path = setting(
        Path("hloc"),
        "the folder of this run is made in logs/NAME (import)",
        "NAME",
        group="Results",
    )

    @property
    def root(self) -> Path:
        """Where run folders are made."""
        return LOGS / self.save_dir


def read_hloc(description: str | None, argv: Sequence[str] | None) -> HlocOptions:
    """Read the command line of hloc_files.py; InputError for flags of the other way."""
    parser = Parser(description)
    parser.add(HlocOptions, but=("train_set_folder", "val_set_folder"))
    asked = parser.read(argv)
    options = asked.config(HlocOptions)
    for name in _OF_IMPORT if options.action == "export" else _OF_EXPORT:
        if asked.get(name) is not None:
            raise InputError(f"--{name} is none of {options.action}'s flags: leave it out")
    if options.action == "import":
        _ = options.source  # says at once what is missing
    return options
