"""Folders of a user by the XDG Base Directory Specification."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def user_folder(variable: str, below_home: str) -> Path:
    """Return the folder that an environment variable names, else one below the home folder.

    Raises:
        OSError: neither exists, for example for a container's user without an account.
    """
    if given := os.environ.get(variable):
        return Path(given)
    try:
        return Path.home() / below_home
    except RuntimeError:
        text = f"this user has no home folder: set HOME or {variable}"
        raise OSError(errno.EINVAL, text) from None
