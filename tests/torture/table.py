"""The table that `make torture` prints."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

COLUMNS = ("own error", "equal", "other content", "fell short")


class Row(NamedTuple):
    """How often each outcome was met, and what fell short."""

    name: str
    outcomes: Counter[str]
    short: list[str]

    @classmethod
    def of(cls, name: str, outcomes: Counter[str], short: Sequence[str]) -> "Row":
        """A row whose ``outcomes`` are among `COLUMNS`."""
        assert outcomes.keys() <= set(COLUMNS), outcomes
        return cls(name, outcomes, list(short))

    @property
    def tried(self) -> int:
        """How many were tried."""
        return sum(self.outcomes.values())


def in_words(rows: Sequence[Row], most: int = 12) -> str:
    """The table, and under it the first ``most`` that fell short of each row."""
    width = max(len(row.name) for row in rows) + 2
    lines = [" " * width + "tried".rjust(8) + "".join(name.rjust(15) for name in COLUMNS)]
    for row in rows:
        counts = "".join(str(row.outcomes[name]).rjust(15) for name in COLUMNS)
        lines.append(row.name.ljust(width) + str(row.tried).rjust(8) + counts)
    for row in rows:
        lines += [f"{row.name}: {text}" for text in row.short[:most]]
        lines += [f"{row.name}: … {len(row.short) - most} more"] * (len(row.short) > most)
    return "\n".join(lines)
