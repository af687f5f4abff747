"""Folders of a user as the XDG Base Directory Specification has them."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def user_folder(variable: str, below_home: str) -> Path:
    """Return the folder that a variable of the environment names, else one below the home folder.

    Raises:
        OSError: there is neither, as for a container's user without an account.
    """
    if given := os.environ.get(variable):
        return Path(given)
    try:
        return Path.home() / below_home
    except RuntimeError:
        text = f"this user has no home folder: set HOME or {variable}"
        raise OSError(errno.EINVAL, text) from None
