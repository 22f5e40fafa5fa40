"""Progress bars, and the clock of a work's stages."""

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)

progress_bar = functools.partial(tqdm, disable=None)


header_bar = functools.partial(progress_bar, desc="reading headers")


@contextmanager
def progress_to(total: int, **how: Any) -> Iterator[Callable[[int], object]]:
    """A progress bar that is told what was done, and stays at ``total`` where that is more.

    Re-ranking, for one, goes on to random pairs whose number nobody knows before.
    """
    with progress_bar(total=total, **how) as bar:
        yield lambda done: bar.update(min(done, total - bar.n))


@dataclass
class Clock:
    """Wall seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to stage ``name``, and tell it in the log."""
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        log.info("%s: %.1f s", name, spent)
