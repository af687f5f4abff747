"""Tokens of workstations: names and hashes in a private file, reloaded when it changes."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from esm_agent.errors import AccessError
from esm_protos import private_files
from esm_protos.locks import lock
from esm_protos.nearest import unknown
from esm_protos.user_folders import user_folder

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
_VERSION = 1
KEPT_S = 60.0
"""Time for which the last tokens stay valid while the file cannot be opened, seconds."""


@dataclass(frozen=True)
class Token:
    """Token of a paired workstation.

    A plain SHA-256 is sufficient: a token has 256 random bits, so it cannot be found by trial. A
    slow or salted hash would add no protection.
    """

    name: str
    sha256: str
    created: str


def config_folder(given: Path | None = None) -> Path:
    """Return the folder of tokens and certificate: as given, else ``$XDG_CONFIG_HOME/esm-agent``.

    Raises:
        AccessError: no folder is given, and this user has no home folder.
    """
    if given is not None:
        return given
    try:
        return user_folder("XDG_CONFIG_HOME", ".config") / "esm-agent"
    except OSError as error:
        raise AccessError(f"{error.strerror}, or give --config") from None


class TokenFile:
    """Tokens of a folder, safe to use from several threads and programs.

    Args:
        folder: Folder of the file.
        clock: Monotonic clock, seconds.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._path = folder / "tokens.json"
        self._clock = clock
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] | None = None
        self._tokens: tuple[Token, ...] = ()
        self._failing_since: float | None = None
        self._trouble = ""

    def name_of(self, token: str) -> str | None:
        """Return the name of a token, in constant time; None if it is unknown."""
        given = hash_of(token)
        name: str | None = None
        for known in self._current():
            if hmac.compare_digest(known.sha256, given):
                name = known.name
        return name

    def has_name(self, name: str) -> bool:
        """Return whether a token of this name exists."""
        return any(known.name == name for known in self._current())

    def all(self) -> tuple[Token, ...]:
        """Return all tokens.

        Raises:
            AccessError: the file cannot be read.
        """
        try:
            return self._read()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise AccessError(f"{self._path} cannot be read: {_cure(error)}") from error
        except ValueError as error:
            raise AccessError(
                f"{self._path} cannot be read ({error}): remove it and run `esm-agent pair` again"
            ) from error

    def _read(self) -> tuple[Token, ...]:
        """Read the file.

        Raises:
            OSError: it cannot be opened.
            ValueError: it has another form.
        """
        text = self._path.read_bytes()
        try:
            data = json.loads(text)
            if data["version"] != _VERSION:
                raise ValueError(f"version {data['version']}")
            return tuple(
                Token(str(t["name"]), str(t["sha256"]), str(t["created"])) for t in data["tokens"]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(str(error) or repr(error)) from error

    def add(self, name: str | None = None) -> tuple[str, str]:
        """Create a token and store its hash.

        Args:
            name: Name of the workstation; None for the first unused of host1, host2, ...

        Returns:
            The name and the token.

        Raises:
            AccessError: the name is in use or invalid, or the file cannot be read or written.
        """
        if name is not None and not _NAME.fullmatch(name):
            raise AccessError(f"invalid name '{name}': use letters, digits, '.', '_' and '-'")
        with self._changing() as tokens:
            names = {token.name for token in tokens}
            if name is None:
                name = next(n for i in range(1, len(names) + 2) if (n := f"host{i}") not in names)
            if name in names:
                raise AccessError(
                    f"'{name}' is paired already, and its token cannot be shown again: choose "
                    f"another name, or run `esm-agent tokens revoke {name}` first"
                )
            secret = f"esm_{secrets.token_urlsafe(32)}"
            created = datetime.now(UTC).isoformat(timespec="seconds")
            tokens.append(Token(name, hash_of(secret), created))
        return name, secret

    def revoke(self, name: str) -> None:
        """Remove a token.

        Raises:
            AccessError: the token does not exist, or the file cannot be changed.
        """
        with self._changing() as tokens:
            left = [token for token in tokens if token.name != name]
            if len(left) == len(tokens):
                names = [token.name for token in tokens]
                cure = "" if names else "there are no tokens yet"
                raise AccessError(unknown("token", name, names, choices=cure))
            tokens[:] = left

    def _current(self) -> tuple[Token, ...]:
        """Return the tokens that are valid now.

        If the file cannot be opened, the last tokens stay valid for :data:`KEPT_S`, and the next
        call tries again. If the file is missing or invalid, no token is valid.
        """
        with self._lock:
            try:
                stamp = self._stamp_now()
                if stamp != self._stamp:
                    self._tokens = self._read()
            except FileNotFoundError:
                self._tokens, stamp = (), None
            except OSError as error:
                self._keep_for_now(error)
                return self._tokens
            except ValueError as error:
                # A user may be editing it: it is read again when it changes.
                log.error(
                    "no token is accepted: %s cannot be read (%s): remove it and run "
                    "`esm-agent pair` again",
                    self._path,
                    error,
                )
                self._tokens = ()
            self._stamp = stamp
            if self._failing_since is not None:
                log.warning("%s can be read again", self._path)
                self._failing_since, self._trouble = None, ""
            return self._tokens

    def _stamp_now(self) -> tuple[int, ...]:
        status = self._path.stat()
        # Every change creates a new file; ctime shows changed permissions.
        return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size

    def _keep_for_now(self, error: OSError) -> None:
        """Keep the last tokens until :data:`KEPT_S` is over; log each new reason once."""
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        over = now - self._failing_since > KEPT_S
        if over:
            self._tokens, self._stamp = (), None
        consequence = (
            "no token is accepted until it can be read"
            if over or not self._tokens
            else f"the last tokens stay valid for {KEPT_S:.0f} s"
        )
        trouble = f"{self._path} cannot be read: {_cure(error)}; {consequence}"
        if trouble != self._trouble:
            log.error("%s", trouble)
        self._trouble = trouble

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[Token]]:
        """Yield the tokens, to be changed in place; write them if no error occurs."""
        make_private_folder(self._folder)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            lock(folder, wait=True)  # without it, two programs could overwrite each other's change
            tokens = list(self.all())
            yield tokens
            data = {"version": _VERSION, "tokens": [asdict(token) for token in tokens]}
            write_private(self._path, (json.dumps(data, indent=2) + "\n").encode())
        finally:
            os.close(folder)


def _cure(error: OSError) -> str:
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return f"{reason}: chown it to the user that the agent runs as"
    return reason


def hash_of(token: str) -> str:
    """Return the SHA-256 of a token, in hexadecimal."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def make_private_folder(folder: Path) -> None:
    """Create a folder that only its owner can open.

    Raises:
        AccessError: the folder exists and is open to others, or it cannot be created.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            raise AccessError(
                f"{folder} is open to other users: chmod 700 {folder} (or, on a file system "
                "without permissions, choose another folder with --config)"
            )
    except OSError as error:
        raise AccessError(f"cannot create {folder}: {error.strerror}") from error


def write_private(path: Path, data: bytes) -> None:
    """Write a file as :func:`esm_protos.private_files.write_private`.

    Raises:
        AccessError: the file cannot be written.
    """
    try:
        private_files.write_private(path, data)
    except OSError as error:
        raise AccessError(f"cannot write {path}: {error.strerror}") from error
