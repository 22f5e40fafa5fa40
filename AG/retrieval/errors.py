"""How work ends early: by what the user can mend, or by a signal."""

import signal


class InputError(ValueError):
    """Bad input: a path, a value or a file that the user can mend.

    The message names the path, the value found, what was expected, and the flag or step that mends
    it. Scripts print it as one line and exit with status 2 (`script.run`).
    """


class Stopped(Exception):
    """A signal ended the training; its checkpoint is written and the same command goes on."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_status = 128 + signal_number


class WorkerDied(InputError):
    """A helper process was killed, by the system or together with this one."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"a helper process that reads photos was killed, as where memory runs out ({reason}): "
            "use fewer of them (--num_workers 0: none), or smaller batches"
        )


def tells_of_dead_worker(error: Exception) -> bool:
    """Whether an error says that a helper process died.

    Of it torch raises a RuntimeError, in the main process and wherever that is at the moment.
    """
    return isinstance(error, WorkerDied) or "DataLoader worker" in str(error)
