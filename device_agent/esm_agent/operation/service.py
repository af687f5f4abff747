"""A systemd unit that runs this very agent, confined as far as measuring allows."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from esm_protos.user_folders import user_folder

NAME = "esm-agent.service"
_SYSTEM_FOLDER = Path("/etc/systemd/system")
_STOP_MARGIN_S = 15.0  # between the end of the drain and a kill by systemd

# Groups that own what tells of boards' clocks and GPUs: /dev/vcio of a Pi, /dev/nvmap of a Jetson.
_DEVICE_GROUPS = ("render", "video")


class ServiceError(Exception):
    """The unit cannot be written, or would not work."""


def unit(options: Sequence[str], drain_s: float, system: bool) -> str:
    """The unit's text.

    Args:
        options: of ``esm-agent serve``.
        drain_s: how long the agent may take to stop.
        system: for all users, from the boot on; else for the user who installs it.

    Raises:
        ServiceError: it would not work.
    """
    sections = {
        "Unit": [
            "Description=Times neural networks on this device (esm-agent)",
            "Documentation=https://pypi.org/project/esm-profiler/",
            *(["Wants=network-online.target", "After=network-online.target"] if system else []),
            "# It is to come back whatever happens, however often.",
            "StartLimitIntervalSec=0",
        ],
        "Service": [
            *_running(options, drain_s),
            *(_account() if system else []),
            *_confinement(),
            *(_system_confinement() if system else []),
        ],
        "Install": [f"WantedBy={'multi-user.target' if system else 'default.target'}"],
    }
    return "\n".join(f"[{name}]\n" + "\n".join(lines) + "\n" for name, lines in sections.items())


def install(text: str, system: bool) -> tuple[Path, tuple[str, ...]]:
    """Writes the unit.

    Returns:
        Where, and the commands to run next.

    Raises:
        ServiceError: it may not be written.
    """
    if system and os.geteuid() != 0:
        raise ServiceError(
            "a unit for the whole system is root's to write: "
            f"sudo {sys.executable} -m esm_agent.cli install-service --system ..., or --user"
        )
    try:
        path = (_SYSTEM_FOLDER if system else users_units()) / NAME
    except OSError as error:
        raise ServiceError(str(error.strerror)) from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise ServiceError(f"cannot write {path}: {error.strerror}") from error
    return path, next_steps(system)


def next_steps(system: bool) -> tuple[str, ...]:
    """Commands that start what was installed."""
    if system:
        return ("systemctl daemon-reload", f"systemctl enable --now {NAME}")
    return (
        "systemctl --user daemon-reload",
        f"systemctl --user enable --now {NAME}",
        "loginctl enable-linger    # from the boot on, and after you log out",
    )


def users_units() -> Path:
    """Return the folder of a user's own units; raise OSError without a home folder."""
    return user_folder("XDG_CONFIG_HOME", ".config") / "systemd/user"


def _running(options: Sequence[str], drain_s: float) -> list[str]:
    return [
        "Type=exec",
        f"ExecStart={' '.join(map(_quoted, (*_command(), 'serve', *options)))}",
        "Restart=always",
        "# Longer pauses each time where systemd knows how to (254); others ignore the two.",
        "RestartSec=2",
        "RestartSteps=6",
        "RestartMaxDelaySec=60",
        "# The agent alone is told to stop: it ends its measuring process when the block is done.",
        "KillMode=mixed",
        f"TimeoutStopSec={drain_s + _STOP_MARGIN_S:g}",
        "StateDirectory=esm-agent",
        "StateDirectoryMode=0700",
        "CacheDirectory=esm-agent",
        "CacheDirectoryMode=0700",
        "ConfigurationDirectory=esm-agent",
        "UMask=0077",
    ]


def _account() -> list[str]:
    """Who installs it by sudo, whose settings at home count; else nobody in particular."""
    groups = {group.gr_name for group in grp.getgrall()}
    found = [name for name in _DEVICE_GROUPS if name in groups]
    extra = [f"SupplementaryGroups={' '.join(found)}"] if found else []
    person = os.environ.get("SUDO_USER", "root")
    if person != "root":
        try:
            home = pwd.getpwnam(person).pw_dir
        except KeyError:
            raise ServiceError(
                f"SUDO_USER is '{person}', which is no account: install as root without sudo, or "
                "by sudo from an account"
            ) from None
        settings = Path(home) / ".config/esm-agent"
        return [f"User={person}", f"ReadWritePaths=-{_quoted(str(settings))}", *extra]
    locked = _locked_folder(Path(sys.prefix))
    if locked is not None:
        raise ServiceError(
            f"{locked} is closed to others, and a service should not be root: install by sudo from "
            "the account that it is to run as, or put esm-profiler into /opt/esm"
        )
    return ["DynamicUser=yes", "Environment=XDG_CONFIG_HOME=%S", *extra]


def _locked_folder(path: Path) -> Path | None:
    """The folder on the way there that not everybody may enter."""
    for folder in (path, *path.resolve().parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def _confinement() -> list[str]:
    """What a user's own systemd can do as well; it leaves out what its kernel does not let it."""
    return [
        "NoNewPrivileges=yes",
        "# A /tmp of its own: uploads lie there.",
        "PrivateTmp=yes",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        "# Read-only, not hidden: clocks, temperatures and load are read under /sys and /proc,",
        "# so there is no ProcSubset=pid in here.",
        "ProtectKernelTunables=yes",
        "ProtectControlGroups=yes",
        "# AF_NETLINK: how programs ask for this machine's own addresses.",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "LockPersonality=yes",
        "# No MemoryDenyWriteExecute: execution providers compile kernels into memory.",
        "SystemCallArchitectures=native",
        "# seccomp: by which the measuring process confines itself further.",
        "SystemCallFilter=@system-service seccomp",
        "SystemCallErrorNumber=EPERM",
        "# Something is to be left for the rest of the device.",
        "MemoryMax=80%",
        "# A measuring process that is killed for its memory is started again by the agent, which",
        "# knows the model to blame. Else systemd would stop the agent as well.",
        "OOMPolicy=continue",
    ]


def _system_confinement() -> list[str]:
    """What takes rights that a user's own systemd lacks: there the unit would not start."""
    return [
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "ProtectClock=yes",
        "ProtectHostname=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes",
        "# No PrivateDevices: it would hide GPUs. Nothing else may be opened; a Pi tells of",
        "# throttling through /dev/vcio.",
        "DevicePolicy=closed",
        "DeviceAllow=char-nvidia* rw",
        "DeviceAllow=char-nvhost* rw",
        "DeviceAllow=char-drm rw",
        "DeviceAllow=/dev/nvmap rw",
        "DeviceAllow=/dev/vcio rw",
    ]


def _command() -> tuple[str, ...]:
    script = Path(sys.executable).with_name("esm-agent")
    if os.access(script, os.X_OK):
        return (str(script),)
    return (sys.executable, "-P", "-m", "esm_agent.cli")


def _quoted(word: str) -> str:
    """As systemd's ExecStart reads it (systemd.service(5), "Command lines")."""
    if not word.isprintable():
        raise ServiceError(f"{word!r} cannot be written into a unit: it has control characters")
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    needs_quotes = not word or any(letter in word for letter in " ';\"\\")
    return f'"{word}"' if needs_quotes else word
