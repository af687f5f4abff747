"""The host's errors. Each message is one line that names the cure; each class has an exit code.

EsmError (1)
    UsageError (2)              what was asked for makes no sense
    DatasetError (1)            a store or run folder is unusable
        RunExistsError (2)      the folder holds a campaign already
        MismatchError (2)       the folder is of another device, space or setting
    DeviceError (1)             the agent refused or failed
        InvalidRequestError (2) what was asked of it makes no sense there
        NotNowError (75)        it asks to try again: it stops, lacks room, or lost the lease
        UnreachableError (69)   nobody answers
        VersionError (1)        the agent speaks another protocol version
        AuthError (77)          the agent does not let this host in, or is not the one it knows
    BusyError (75)              somebody else uses it
    ClusterError (69)           no scheduler or worker answers, or they are not fit
"""

from __future__ import annotations

from typing import ClassVar

from esm_host.arguments import argument, in_python, on_command_line
from esm_models.errors import InvalidSpaceError


class EsmError(Exception):
    """Error with a message that names arguments as Python has them.

    Attributes:
        marked: message with its arguments marked, for an error that quotes this one.
    """

    exit_code: ClassVar[int] = 1

    @property
    def marked(self) -> str:
        return super().__str__()

    def __str__(self) -> str:
        return in_python(self.marked)

    def for_command(self) -> str:
        """Return the message with the options of the command line."""
        return on_command_line(self.marked)


class UsageError(EsmError):
    exit_code = 2

    @classmethod
    def of_space(cls, error: InvalidSpaceError) -> UsageError:
        """Quote the error of a search space's settings, with the argument marked."""
        text = str(error)
        if error.argument:
            text = argument(error.argument) + text.removeprefix(error.argument)
        return cls(text)


class DatasetError(EsmError):
    pass


class NotATimingError(DatasetError):
    """File that is not the JSON of a timing."""

    exit_code = 2


class RunExistsError(DatasetError):
    exit_code = 2


class MismatchError(DatasetError):
    exit_code = 2


class DeviceError(EsmError):
    pass


class InvalidRequestError(DeviceError):
    exit_code = 2


class NotNowError(DeviceError):
    exit_code = 75


class UnreachableError(DeviceError):
    exit_code = 69


class VersionError(DeviceError):
    pass


class AuthError(DeviceError):
    exit_code = 77


class BusyError(EsmError):
    exit_code = 75


class ClusterError(EsmError):
    exit_code = 69


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise UsageError unless an argument is within a range, both ends included."""
    if not low <= value <= high:
        raise UsageError(f"{argument(name)} {value} is outside {low} to {high}")
