"""Errors of the host: one line with a cure, and an exit code per class.

EsmError (1)
    UsageError (2)
    DatasetError (1)
        NotATimingError (2)
        RunExistsError (2)
        MismatchError (2)
    DeviceError (1)
        InvalidRequestError (2)
        NotNowError (75)
        UnreachableError (69)
        VersionError (1)
        AuthError (77)
    BusyError (75)
    ClusterError (69)
"""

from __future__ import annotations

from typing import ClassVar

from esm_host.arguments import argument, in_python, on_command_line
from esm_models.errors import InvalidSpaceError


class EsmError(Exception):
    """Error whose message names arguments as in Python.

    Attributes:
        marked: Message with marked arguments, for errors that quote this one.
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


class GuessWarning(UserWarning):
    """Warning that predictions are far from what was measured.

    Attributes:
        marked: Message with marked arguments, for the command line.
    """

    def __init__(self, marked: str) -> None:
        super().__init__(in_python(marked))
        self.marked = marked


class UsageError(EsmError):
    """Error of an invalid argument or setting."""

    exit_code = 2

    @classmethod
    def of_space(cls, error: InvalidSpaceError) -> UsageError:
        """Return the error of a search space's settings, with its argument marked."""
        text = str(error)
        if error.argument:
            text = argument(error.argument) + text.removeprefix(error.argument)
        return cls(text)


class DatasetError(EsmError):
    """Error of an unusable store or run folder."""


class NotATimingError(DatasetError):
    """File that is not the JSON of a timing."""

    exit_code = 2


class RunExistsError(DatasetError):
    """Error of a folder that already holds a campaign."""

    exit_code = 2


class MismatchError(DatasetError):
    """Error of a folder with another device, space or setting."""

    exit_code = 2


class DeviceError(EsmError):
    """Error of an agent that refuses or fails."""


class InvalidRequestError(DeviceError):
    """Error of a request that an agent cannot carry out, such as an unknown option."""

    exit_code = 2


class NotNowError(DeviceError):
    """Error of an agent that stops, lacks space, or lost the lease; another attempt may succeed."""

    exit_code = 75


class UnreachableError(DeviceError):
    """Error of an address without an agent that answers."""

    exit_code = 69


class VersionError(DeviceError):
    """Error of an agent with another protocol version."""


class AuthError(DeviceError):
    """Error of an agent that rejects this host, or is not the expected one."""

    exit_code = 77


class BusyError(EsmError):
    """Error of a device or folder that another program uses."""

    exit_code = 75


class ClusterError(EsmError):
    """Error of a cluster that does not answer or is unsuitable."""

    exit_code = 69


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Check that an argument is within a range, both ends included.

    Raises:
        UsageError: the argument is outside the range.
    """
    if not low <= value <= high:
        raise UsageError(f"{argument(name)} {value} is outside {low} to {high}")
