"""Errors of search spaces. Each message is one line that names the cure."""


class ModelsError(Exception):
    """Root of this package's errors."""


class UnknownSpaceError(ModelsError):
    """No search space of that name, or no such class in the given file."""


class InvalidSpaceError(ModelsError):
    """A search space cannot be built with these settings.

    Args:
        text: what is wrong.
        argument: name of the setting that is at fault, which the message then begins with.
    """

    def __init__(self, text: str, argument: str = "") -> None:
        super().__init__(f"{argument} {text}" if argument else text)
        self.argument = argument


class InvalidArchitectureError(ModelsError):
    """An architecture does not belong to the search space."""
