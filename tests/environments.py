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


def as_nobody(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a module's ``main`` as a user without an account, a home folder or an environment."""
    return _run(_NAMELESS, module, arguments, {"PATH": os.environ["PATH"]})


def with_read_only_shm(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a module's ``main`` where /dev/shm cannot be written to."""
    return _run(_READ_ONLY_SHM, module, arguments, dict(os.environ))


_HIDING = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in {hidden}
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


_IN_TURN = """
from esm_host.cli.app import app

for command in {commands}:
    if code := app(command, standalone_mode=False):
        sys.exit(code)
"""


def all_without(
    modules: Sequence[str], commands: Sequence[Sequence[object]]
) -> subprocess.CompletedProcess[str]:
    """Run commands of esm-host in one process, until one fails, where modules are missing."""
    texts = [[str(word) for word in command] for command in commands]
    program = _IN_TURN.replace("{commands}", repr(texts))
    return _python((), f"{_hiding(modules)}\n{program}", (), dict(os.environ))


def without(
    modules: Sequence[str], module: str, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a module's ``main`` where others are not installed."""
    return _run((), module, arguments, {**os.environ, **environment}, _hiding(modules))


def _hiding(modules: Sequence[str]) -> str:
    return _HIDING.replace("{hidden}", repr(list(modules)))


def _run(
    prefix: Sequence[str],
    module: str,
    arguments: Sequence[object],
    env: dict[str, str],
    first: str = "",
) -> subprocess.CompletedProcess[str]:
    return _python(prefix, f"{first}\nfrom {module} import main; main()", arguments, env)


def _python(
    prefix: Sequence[str], program: str, arguments: Sequence[object], env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
