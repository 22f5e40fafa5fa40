"""How a script runs and ends."""

import ctypes
import io
import logging
import logging.handlers
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from retrieval.errors import InputError, Stopped, WorkerDied, tells_of_dead_worker
from retrieval.files import (
    PlainText,
    command_line,
    keep_log,
    new_folder,
    without_escapes,
    write_atomically,
)

CACHE = Path("cache")
LOGS = Path("logs")

# Lines of the log that are kept until there is a run folder to write them to.
_MOST_LINES = 10_000


def answer(read: Callable[[str | None, Sequence[str] | None], object], doc: str | None) -> None:
    """Read the command line before a script imports what takes seconds to load.

    ``-h`` and flags that cannot be are answered at once; else the script goes on, and reads the
    line again in its ``main``. So each script calls this above its imports.
    """
    status = _status_of(lambda: read(doc, None))
    if status:
        sys.exit(status)


def run(main: Callable[[], object]) -> None:
    """Call a script's ``main``; an `InputError` becomes one message and exit status 2."""
    keep_freed_memory()
    kept = logging.handlers.MemoryHandler(_MOST_LINES, logging.CRITICAL)
    logging.getLogger().addHandler(kept)
    sys.exit(_status_of(main))


def open_run(root: Path) -> Path:
    """A new run folder below ``root``, in which the process's log is kept."""
    folder = new_folder(root)
    begin(folder)
    return folder


def begin(folder: Path) -> None:
    """Keep the process's command and log in a folder."""
    write_atomically(folder / "command.txt", command_line() + "\n")
    keep_log(folder)


def _status_of(work: Callable[[], object]) -> int:
    # Of the processes that torchrun starts, the first one speaks for all.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files, signs that a console lacks
            stream.reconfigure(errors="backslashreplace")
    printed = logging.StreamHandler(sys.stdout)
    printed.setFormatter(PlainText("%(message)s"))
    logging.basicConfig(level=level, handlers=[printed])
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells how it was loaded
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's; we have our own
    try:
        work()
    except Stopped as stop:
        return _say(f"{stop}; the same command goes on from there", stop.exit_status)
    except (InputError, OSError) as error:  # a full disk, a folder that may not be written
        return _say(f"error: {error}", 2)
    except RuntimeError as error:
        if not tells_of_dead_worker(error):
            raise
        return _say(f"error: {WorkerDied(str(error).splitlines()[0])}", 2)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    return 0


def _say(message: str, status: int) -> int:
    print(without_escapes(message), file=sys.stderr)
    return status


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation instead of giving it back each time.

    A network's maps are large, so by default each is mapped anew and its pages are faulted in. On
    virtual machines that can cost several times what the layers do. Elsewhere (macOS, musl) there
    is no such setting and nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # names of the parameters in malloc.h
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)
