"""A Debian root file system for arm64 under qemu-user: it stands in for a Raspberry Pi.

It is made once and kept outside the repository (``python -m tests.arm64.rootfs`` prints where).
Commands run in mount and process namespaces of their own, so that nothing of theirs stays mounted
or running when they, or whoever started them, end in whatever way.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv")
USER, USER_ID = "pi", 1000
INSTALL_S, STAGE_S = 600, 1800

_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_TOOLS = {  # what has to be there: the Debian package that brings it
    "debootstrap": "debootstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "update-binfmts": "binfmt-support",
}
_MADE = "made-by"
"""File that says how the root was made: another recipe makes another root."""

_NAMESPACES = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
)
"""Before a command: what it mounts and starts goes with it, and it with whoever runs it."""

# The shell stays, as process 1 of its namespace and as root: `chroot --userspec` would lose the
# signal that ends it with its parent, and everything below ends with it.
_ENTER = """
set -e
mount --bind "$2" "$1/home"
mount -t proc proc "$1/proc"
mount -t tmpfs tmpfs "$1/tmp"
mount -t tmpfs tmpfs "$1/dev/shm"
root=$1
shift 2
chroot --userspec=USER "$root" /usr/bin/env -i "$@" || exit $?
exit 0
"""


class UnavailableError(Exception):
    """This machine cannot have the root file system; says why, and the cure."""


def cache_folder() -> Path:
    """Where the root and the wheels are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "esm-profiler"


def prepare() -> Path:
    """The root file system, made if there is none yet; may install Debian's qemu and debootstrap.

    Raises:
        UnavailableError: not root, not Linux, no qemu, or no network to make it from.
    """
    if sys.platform != "linux":
        raise UnavailableError("chroot and qemu-user need Linux: use a Debian machine")
    if os.geteuid() != 0:
        raise UnavailableError("chroot and mount need root: run as root, or with sudo -E")
    root = cache_folder() / f"arm64-{SUITE}"
    recipe = f"{SUITE} {MIRROR} {' '.join(PACKAGES)} {USER}={USER_ID}\n"
    made = root / _MADE
    fresh = not made.exists() or made.read_text() != recipe
    _need_tools(fresh)
    if platform.machine() != "aarch64":
        _need_binfmt()
    if fresh:
        _make(root, recipe)
    return root


def command(root: Path, home: Path, line: str, variables: Mapping[str, str]) -> list[str]:
    """What runs a shell line in the root as its ordinary user.

    Args:
        root: as of :func:`prepare`; the line cannot change anything in it that stays.
        home: folder that is ``/home`` in there.
        line: as typed on the device.
        variables: added to a clean environment.
    """
    environment = {
        "HOME": f"/home/{USER}",
        "USER": USER,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        **variables,
    }
    shell = ["sh", "-c", f"cd && {line}"]
    return [
        *_NAMESPACES,
        *("sh", "-c", _ENTER.replace("USER", f"{USER_ID}:{USER_ID}"), "enter"),
        *(str(root), str(home)),
        *(f"{name}={value}" for name, value in environment.items()),
        *shell,
    ]


def new_home(home: Path) -> Path:
    """The user's folder under a new ``/home``."""
    folder = home / USER
    folder.mkdir(parents=True)
    give_to_user(folder)
    return folder


def give_to_user(path: Path) -> None:
    os.chown(path, USER_ID, USER_ID)


def _need_tools(fresh: bool) -> None:
    tools = dict(_TOOLS)
    if not fresh:
        del tools["debootstrap"]
    if platform.machine() == "aarch64":
        tools = {tool: package for tool, package in tools.items() if tool == "debootstrap"}
    missing = sorted({package for tool, package in tools.items() if shutil.which(tool) is None})
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise UnavailableError(f"no {', '.join(missing)} here: install them by hand")
    if fresh:
        missing.append("debian-archive-keyring")
    for step in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
        _run(
            ["apt-get", *step],
            f"apt-get cannot install {', '.join(missing)}: is there a network?",
            INSTALL_S,
            DEBIAN_FRONTEND="noninteractive",
        )


def _need_binfmt() -> None:
    """Lets the kernel start arm64 programs with qemu, by an interpreter that needs no path."""
    if not (_BINFMT / "status").exists():
        cannot = f"{_BINFMT} cannot be mounted: load the kernel module binfmt_misc"
        _run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)], cannot, 60)
    entry = _BINFMT / "qemu-aarch64"
    if not entry.exists():
        cannot = "update-binfmts cannot register qemu-aarch64: a container may not, its host must"
        _run(["update-binfmts", "--enable", "qemu-aarch64"], cannot, 60)
    facts = entry.read_text() if entry.exists() else ""
    flags = [line for line in facts.splitlines() if line.startswith("flags:")]
    if "enabled" not in facts.split() or not flags or "F" not in flags[0].partition(":")[2]:
        raise UnavailableError(
            "the kernel does not hand arm64 programs to qemu in a chroot: register qemu-aarch64 "
            "with flag F, as Debian's qemu-user-static does"
        )


def _make(root: Path, recipe: str) -> None:
    """In a folder beside it first: a root that is there is whole. One at a time makes it."""
    root.parent.mkdir(parents=True, exist_ok=True)
    made, unfinished = root / _MADE, root.with_name(f"{root.name}.unfinished")
    with root.with_name(f"{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists() and made.read_text() == recipe:
            return  # another one has made it meanwhile
        shutil.rmtree(unfinished, ignore_errors=True)
        include = f"--include={','.join(PACKAGES)}"
        place = [SUITE, str(unfinished), MIRROR]
        what = f"debootstrap cannot make arm64 {SUITE} from {MIRROR}"
        first = ["debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", include, *place]
        _run([*_NAMESPACES, *first], f"{what}: is there a network?", STAGE_S)
        for line in (
            ["/debootstrap/debootstrap", "--second-stage"],
            ["useradd", "--uid", str(USER_ID), "--create-home", USER],
            ["apt-get", "clean"],
        ):
            _run([*_NAMESPACES, "chroot", str(unfinished), *line], what, STAGE_S)
        (unfinished / "dev" / "shm").mkdir(exist_ok=True)
        (unfinished / _MADE).write_text(recipe)
        shutil.rmtree(root, ignore_errors=True)
        unfinished.rename(root)


def _run(line: list[str], cannot: str, timeout_s: float, **variables: str) -> None:
    """Raises UnavailableError with the program's last words unless it ends well."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env={"PATH": path, "LANG": "C.UTF-8", **_proxies(), **variables},
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{cannot} (no end after {timeout_s:g} s)") from None
    except OSError as error:
        raise UnavailableError(f"{cannot} ({error})") from None
    if done.returncode:
        said = done.stdout.strip().splitlines() or ["it said nothing"]
        raise UnavailableError(f"{cannot} ({said[-1]})")


def _proxies() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}


if __name__ == "__main__":
    try:
        print(prepare())
    except UnavailableError as error:
        sys.exit(f"error: {error}")
