"""How a script runs and ends."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from retrieval.devices import keep_freed_memory
from retrieval.errors import InputError, Stopped

CACHE = Path("cache")


LOGS = Path("logs")


def run(main: Callable[[], None]) -> None:
    """Call a script's ``main``; an `InputError` becomes one message and exit status 2."""
    keep_freed_memory()
    # Of the processes that torchrun starts, the first one speaks for all.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(format="%(message)s", level=level, stream=sys.stdout)
    status = 0
    try:
        main()
    except InputError as error:
        status = _say(f"error: {error}", 2)
    except Stopped as stop:
        status = _say(f"{stop}; the same command goes on from there", stop.exit_status)
    except OSError as error:  # a full disk, a folder that may not be written, a file in its place
        status = _say(f"error: {error}", 2)
    except KeyboardInterrupt:
        status = _say("interrupted", 130)
    sys.exit(status)


def _say(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status
