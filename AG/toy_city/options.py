"""What make_toy_city.py and make_toy_sfm.py are asked for."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retrieval.commands import flags
from retrieval.configs.setting import Config, argument, setting
from toy_city.config import ToyCityConfig, ToySfmConfig


@dataclass(frozen=True)
class ToyOptions(Config, group="Run"):
    """What both scripts are asked for."""

    folder: Path = argument("folder to write")
    num_workers: int = setting(
        os.cpu_count() or 1, "helper processes: they draw photos", names=("workers",), least=1
    )


@dataclass(frozen=True)
class CityOptions(ToyOptions, group="Run"):
    """All that make_toy_city.py is asked for."""

    config: ToyCityConfig = field(default_factory=ToyCityConfig)
    force: bool = setting(False, "replace a toy city of other settings that is in FOLDER")


@dataclass(frozen=True)
class SfmOptions(ToyOptions, group="Data"):
    """All that make_toy_sfm.py is asked for."""

    config: ToySfmConfig = field(default_factory=ToySfmConfig)
    test_datasets: tuple[str, ...] = setting(("toytown",), "names of test sets, between commas")


def read_city(description: str | None, argv: Sequence[str] | None) -> CityOptions:
    """Read the command line of make_toy_city.py."""
    return flags.read(CityOptions, description, argv)


def read_sfm(description: str | None, argv: Sequence[str] | None) -> SfmOptions:
    """Read the command line of make_toy_sfm.py."""
    return flags.read(SfmOptions, description, argv)
