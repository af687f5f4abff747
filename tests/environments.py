"""Surroundings that commands meet on other people's machines, made by Linux name spaces."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

_NAMELESS = ("unshare", "--user", "--map-user=12345")
_READ_ONLY_SHM = (
    *("unshare", "--user", "--map-root-user", "--mount", "sh", "-c"),
    'mount -t tmpfs -o ro none /dev/shm && exec "$@"',
    "sh",
)


def _works(command: Sequence[str]) -> bool:
    try:
        return subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


needs_nameless = pytest.mark.skipif(not _works(_NAMELESS), reason="no user name spaces here")
needs_read_only_shm = pytest.mark.skipif(
    not _works(_READ_ONLY_SHM), reason="no mount name spaces here"
)


def as_nobody(
    module: str, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the ``main`` of a module as a user without an account, a home folder, or anything in the environment."""
    command = [
        *_NAMELESS,
        sys.executable,
        "-c",
        f"from {module} import main; main()",
        *map(str, arguments),
    ]
    env = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )


def with_read_only_shm(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the ``main`` of a module that cannot write to /dev/shm."""
    command = [
        *_READ_ONLY_SHM,
        sys.executable,
        "-c",
        f"from {module} import main; main()",
        *map(str, arguments),
    ]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
