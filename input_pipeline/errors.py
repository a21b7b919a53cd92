"""The failures that a user can mend. Each is one line that names the flag or file, the value and the remedy."""


class ExpectedError(Exception):
    """A failure that is not a defect of this project: `main.py` prints its line and exits with `exit_code`."""

    exit_code = 1


class SettingError(ExpectedError):
    """A flag has a value that cannot work, by itself, with another flag or with a checkpoint."""

    exit_code = 2

    def __init__(self, name, value, remedy):
        super().__init__(f"--{name}={'' if value is None else value}: {remedy}")


class UnusableError(ExpectedError):
    """Data, a checkpoint or the file system cannot be used."""

    exit_code = 3


class LostWorkerError(ExpectedError):
    """Another worker of the run died, hangs, never came or ended with an error."""

    exit_code = 75
