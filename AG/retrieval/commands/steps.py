"""Commands run one after the other in processes of their own; what is done is not done again."""

import logging
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from retrieval.files import read_json, sealed, write_json

log = logging.getLogger(__name__)

AG = Path(__file__).resolve().parents[2]


class Steps:
    """The steps of a longer work, with the seconds of each kept in a file for the next call."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.seconds: dict[str, float] = {}
        if file.exists():
            try:
                self.seconds = {name: float(taken) for name, taken in read_json(file).items()}
            except (OSError, ValueError, TypeError) as error:
                log.warning("%s is damaged (%s): all steps are taken again", file, error)

    def take(self, step: str, *commands: str) -> None:
        """Run ``python3 COMMAND``, by this interpreter, for each command unless the step is done.

        Commands are typed as in a shell; they find the packages of this folder. One that fails, or
        is stopped by a signal, ends this process with its exit status.
        """
        if step in self.seconds:
            return
        start = time.perf_counter()
        for command in commands:
            log.info("\n== %s\n%s %s", step, _python(), command)
            status = _run([sys.executable, *shlex.split(command)])
            if status:
                log.info("stopped at %r; the same command goes on from here", step)
                sys.exit(status)
        self.seconds[step] = round(time.perf_counter() - start, 1)
        write_json(self._file, sealed(self.seconds))


def _python() -> str:
    """The running interpreter as it is typed from here."""
    here = Path(sys.executable)
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)


def _run(words: list[str]) -> int:
    path = os.pathsep.join([str(AG), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": path})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # Ctrl-C reaches the command too, and it may have work to save
            log.info("stopping")
