"""Errors of search spaces; each message is one line that says what to do."""

from collections.abc import Mapping


class ModelsError(Exception):
    """Base class of this package's errors."""


class UnknownSpaceError(ModelsError):
    """Unknown name of a search space, or unknown class of a file."""


class InvalidSpaceError(ModelsError):
    """Invalid settings of a search space.

    Args:
        text: What is wrong.
        argument: Name of the invalid setting, which begins the message; "" if there is none.
    """

    def __init__(self, text: str, argument: str = "") -> None:
        super().__init__(f"{argument} {text}" if argument else text)
        self.argument = argument


class InvalidArchitectureError(ModelsError):
    """Architecture outside its search space.

    Args:
        text: What is wrong.
        lacking: Contexts that the architecture lacks, each with a value that it may have.
        foreign: Contexts of the architecture that the space lacks, with their values.
    """

    def __init__(
        self,
        text: str,
        lacking: Mapping[str, int] | None = None,
        foreign: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(text)
        self.lacking = lacking or {}
        self.foreign = foreign or {}
