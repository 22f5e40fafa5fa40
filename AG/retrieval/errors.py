"""The one error that is the user's to mend."""


class InputError(ValueError):
    """Bad input: a path, a value or a file that the user can mend.

    The message names the path, the value found, what was expected, and the flag or step that mends
    it. Scripts print it as one line and exit with status 2 (`options.run`).
    """
