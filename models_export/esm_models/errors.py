"""Errors of search spaces. Each message is one line that names the cure."""


class ModelsError(Exception):
    """Root of this package's errors."""


class UnknownSpaceError(ModelsError):
    """No search space of that name, or no such class in the given file."""


class InvalidSpaceError(ModelsError):
    """A search space cannot be built with these settings."""


class InvalidArchitectureError(ModelsError):
    """An architecture does not belong to the search space."""
