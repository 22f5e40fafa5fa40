"""How a script runs and ends."""

import ctypes
import io
import logging
import logging.handlers
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from retrieval.errors import InputError, Stopped, WorkerDied, tells_of_dead_worker
from retrieval.files import command_line, new_folder, write_atomically

CACHE = Path("cache")
LOGS = Path("logs")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

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
    keep_log(folder)
    return folder


def keep_log(folder: Path) -> None:
    """Write what this process has logged, and will, to info.log, and its command to command.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "command.txt", command_line() + "\n")
    file = logging.FileHandler(folder / "info.log", encoding="utf-8")
    file.setFormatter(PlainText("%(asctime)s %(message)s"))
    root_log = logging.getLogger()
    for kept in [each for each in root_log.handlers if type(each).__name__ == "MemoryHandler"]:
        assert isinstance(kept, logging.handlers.MemoryHandler)
        kept.setTarget(file)
        kept.close()
        root_log.removeHandler(kept)
    root_log.addHandler(file)


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


class PlainText(logging.Formatter):
    """Lines in which what would steer a terminal is written out: names may hold anything."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return without_escapes(super().format(record))


def without_escapes(text: str) -> str:
    """The text with its control characters, but for ends of lines and tabs, as ``\\x1b``."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


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
