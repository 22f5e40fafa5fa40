"""Progress of long work, told from wherever the work is done; and the clock of its stages.

A caller opens a `bar` around a piece of work; whatever does the work calls `advance`, which moves
the innermost bar, and does nothing where nobody watches. On a terminal a bar is tqdm's; piped into
a file or another program it is a line in the log every half a minute.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tqdm import tqdm

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0

# The bars that are open, innermost last.
_open: "list[_Bar]" = []


class _Bar:
    """One bar; what is done beyond ``total`` is not shown. None: nobody knows how much it is."""

    def __init__(self, name: str, total: int | None, unit: str, done: int) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self._start = self._told = time.monotonic()
        self._first = done
        shown = sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"
        self._tqdm = tqdm(
            desc=name, total=total, initial=done, unit=f" {unit}", unit_scale=True, delay=0.5,
            disable=not shown,
        )  # fmt: skip

    def advance(self, count: int, note: str) -> None:
        if self.total is not None:
            count = min(count, self.total - self.done)
        self.done += count
        if not self._tqdm.disable:
            self._tqdm.set_postfix_str(note, refresh=False)
            self._tqdm.update(count)
        elif time.monotonic() - self._told >= SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            log.info("%s", self._line(note))

    def _line(self, note: str) -> str:
        """``local features: 1200 of 6400 photos, 3 min left``."""
        if self.total is None:
            return f"{self.name}: {self.done} {self.unit}"
        speed = (self.done - self._first) / (self._told - self._start)
        minutes = (self.total - self.done) / speed / 60 if speed else float("inf")
        left = f"{minutes:.0f} min left" if minutes >= 1 else f"{60 * minutes:.0f} s left"
        words = [f"{self.name}: {self.done} of {self.total} {self.unit}", left, note]
        return ", ".join(word for word in words if word)

    def close(self) -> None:
        self._tqdm.close()


@contextmanager
def bar(name: str, total: int | None, unit: str = "photos", *, done: int = 0) -> Iterator[None]:
    """Show how much of ``total`` the block has done, by what it tells `advance`."""
    opened = _Bar(name, total, unit, done)
    _open.append(opened)
    try:
        yield
    finally:
        _open.remove(opened)
        opened.close()


def advance(count: int = 1, note: str = "") -> None:
    """Tell the innermost open bar that ``count`` more are done; ``note`` is shown beside it."""
    if _open:
        _open[-1].advance(count, note)


@dataclass
class Clock:
    """Wall seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int = 0, unit: str = "photos") -> Iterator[None]:
        """Add the time of the block to stage ``name``, tell it in the log, and show a `bar`."""
        start = time.perf_counter()
        with bar(name, total, unit):
            yield
        spent = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        log.info("%s: %.1f s", name, spent)
