"""Systemd unit that runs the installed agent, confined as far as measuring allows."""

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
_STOP_MARGIN_S = 15.0  # from the end of the drain until systemd kills the agent

# Groups that own the device files of clocks and GPUs: /dev/vcio (Pi), /dev/nvmap (Jetson).
_DEVICE_GROUPS = ("render", "video")


class ServiceError(Exception):
    """Error that prevents a working unit."""


def unit(options: Sequence[str], drain_s: float, system: bool) -> str:
    """Return the text of a unit.

    Args:
        options: Options of ``esm-agent serve``.
        drain_s: Time that the agent may take to stop, seconds.
        system: Whether it is a unit of the system, which starts at boot; else it is the user's.

    Raises:
        ServiceError: the unit would not work.
    """
    sections = {
        "Unit": [
            "Description=Times neural networks on this device (esm-agent)",
            "Documentation=https://pypi.org/project/esm-profiler/",
            *(["Wants=network-online.target", "After=network-online.target"] if system else []),
            "# Restart without a limit on the number of failures.",
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
    """Write a unit.

    Returns:
        Its path, and the commands to run next.

    Raises:
        ServiceError: the unit cannot be written.
    """
    if system and os.geteuid() != 0:
        raise ServiceError(
            "only root can write a unit for the whole system: "
            f"sudo {sys.executable} -m esm_agent.cli install-service --system ..., or use --user"
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
    """Return the commands that start an installed unit."""
    if system:
        return ("systemctl daemon-reload", f"systemctl enable --now {NAME}")
    return (
        "systemctl --user daemon-reload",
        f"systemctl --user enable --now {NAME}",
        "loginctl enable-linger    # start at boot, and keep running after you log out",
    )


def users_units() -> Path:
    """Return the folder of the user's units.

    Raises:
        OSError: this user has no home folder.
    """
    return user_folder("XDG_CONFIG_HOME", ".config") / "systemd/user"


def _running(options: Sequence[str], drain_s: float) -> list[str]:
    return [
        "Type=exec",
        f"ExecStart={' '.join(map(_quoted, (*_command(), 'serve', *options)))}",
        "Restart=always",
        "# The pauses grow, from systemd 254 on.",
        "RestartSec=2",
        "RestartSteps=6",
        "RestartMaxDelaySec=60",
        "# Only the agent gets the signal: it ends its measuring process after the block.",
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
    """Return the lines for the account of a system unit.

    It is the user who calls sudo, with the settings in that user's home; else a dynamic user.
    """
    groups = {group.gr_name for group in grp.getgrall()}
    existing = [name for name in _DEVICE_GROUPS if name in groups]
    extra = [f"SupplementaryGroups={' '.join(existing)}"] if existing else []
    person = os.environ.get("SUDO_USER", "root")
    if person != "root":
        try:
            home = pwd.getpwnam(person).pw_dir
        except KeyError:
            raise ServiceError(
                f"SUDO_USER is '{person}', which is not an account: install as root without sudo, "
                "or with sudo from an account"
            ) from None
        settings = Path(home) / ".config/esm-agent"
        return [f"User={person}", f"ReadWritePaths=-{_quoted(str(settings))}", *extra]
    locked = _locked_folder(Path(sys.prefix))
    if locked is not None:
        raise ServiceError(
            f"{locked} is closed to others, and a service should not run as root: install with "
            "sudo from the account that should run it, or put esm-profiler into /opt/esm"
        )
    return ["DynamicUser=yes", "Environment=XDG_CONFIG_HOME=%S", *extra]


def _locked_folder(path: Path) -> Path | None:
    """Return the first folder on a path that other users cannot open; None without one."""
    for folder in (path, *path.resolve().parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def _confinement() -> list[str]:
    """Return the confinement for any unit; a user's systemd skips what its kernel forbids."""
    return [
        "NoNewPrivileges=yes",
        "# A private /tmp, which holds the uploads.",
        "PrivateTmp=yes",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        "# Read-only, but not hidden: clocks, temperatures and load are read in /sys and /proc,",
        "# so ProcSubset=pid is not set.",
        "ProtectKernelTunables=yes",
        "ProtectControlGroups=yes",
        "# AF_NETLINK: for the list of this machine's addresses.",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "LockPersonality=yes",
        "# No MemoryDenyWriteExecute: execution providers compile kernels into memory.",
        "SystemCallArchitectures=native",
        "# seccomp: the measuring process confines itself further.",
        "SystemCallFilter=@system-service seccomp",
        "SystemCallErrorNumber=EPERM",
        "# Leave memory for the rest of the device.",
        "MemoryMax=80%",
        "# If the kernel kills the measuring process for its memory, the agent starts it again and",
        "# reports the model. By default systemd would stop the agent too.",
        "OOMPolicy=continue",
    ]


def _system_confinement() -> list[str]:
    """Return the confinement that needs rights of the system's systemd.

    A unit of a user's systemd would not start with it.
    """
    return [
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "ProtectClock=yes",
        "ProtectHostname=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes",
        "# PrivateDevices would hide GPUs, so only these devices may be opened. A Pi reports",
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
    """Return a word quoted for systemd's ExecStart (systemd.service(5), "Command lines").

    Raises:
        ServiceError: the word has control characters.
    """
    if not word.isprintable():
        raise ServiceError(f"{word!r} cannot be written into a unit: it has control characters")
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    needs_quotes = not word or any(letter in word for letter in " ';\"\\")
    return f'"{word}"' if needs_quotes else word
