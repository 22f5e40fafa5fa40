"""The flags of compare.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval.commands.flags import Parser
from retrieval.commands.script import LOGS
from retrieval.configs.setting import Config, setting
from retrieval.errors import InputError


@dataclass(frozen=True)
class CompareOptions(Config, group="Results"):
    """What compare.py is asked for."""

    runs: tuple[str, ...] = ()
    level: float = setting(95.0, "bootstrap intervals cover this", "PERCENT", above=0, most=99.99)
    output_dir: Path = setting(LOGS / "compare", "folder of the page and the tables")


def read_comparison(description: str | None, argv: Sequence[str] | None) -> CompareOptions:
    """Read the command line of compare.py; InputError for fewer than two runs."""
    parser = Parser(description)
    text = "run folders to compare, RUN or RUN:STEP; at least two"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=text)
    parser.add(CompareOptions)
    asked = parser.read(argv)
    runs = asked.get("runs")
    if len(runs) < 2:
        raise InputError(f"{' '.join(runs)}: name at least two runs to compare")
    return asked.config(CompareOptions, runs=runs)
