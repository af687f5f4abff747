"""Who may use this agent: names and hashed tokens in a private file, read anew when it changes."""

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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from esm_protos import private_files
from esm_protos.locks import lock
from esm_protos.user_folders import user_folder

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
_VERSION = 1


class AccessError(Exception):
    """What was asked of tokens or certificates cannot be done: one line that names the cure."""


@dataclass(frozen=True)
class Token:
    """A paired workstation.

    A plain SHA-256 suffices: a token is 256 random bits, which nobody finds by trying, so there is
    nothing that a slow or salted hash would protect.
    """

    name: str
    sha256: str
    created: str


def config_folder(given: Path | None = None) -> Path:
    """Where tokens and the certificate are kept: as given, else ``$XDG_CONFIG_HOME/esm-agent``.

    Raises:
        AccessError: nothing is given, and this user has no home folder.
    """
    if given is not None:
        return given
    try:
        return user_folder("XDG_CONFIG_HOME", ".config") / "esm-agent"
    except OSError as error:
        raise AccessError(f"{error.strerror}, or give --config") from None


class TokenFile:
    """The tokens of a folder. Safe to use from several threads, and programs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "tokens.json"
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] | None = None
        self._tokens: tuple[Token, ...] = ()

    def name_of(self, token: str) -> str | None:
        """Whose token this is; None if nobody's. Takes the same time wherever it differs."""
        given = _hash(token)
        found: str | None = None
        for known in self._current():
            if hmac.compare_digest(known.sha256, given):
                found = known.name
        return found

    def all(self) -> tuple[Token, ...]:
        """Raises AccessError where the file cannot be read."""
        try:
            data = json.loads(self._path.read_text())
            if data["version"] != _VERSION:
                raise ValueError(f"version {data['version']}")
            return tuple(
                Token(str(t["name"]), str(t["sha256"]), str(t["created"])) for t in data["tokens"]
            )
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AccessError(
                f"{self._path} cannot be read ({error}): remove it and run `esm-agent pair` again"
            ) from error

    def add(self, name: str | None = None) -> tuple[str, str]:
        """Makes a token; only its hash is kept.

        Args:
            name: None takes the first of host1, host2... that is free.

        Returns:
            Its name, and the token.

        Raises:
            AccessError: the name is taken or unsuitable, or the file cannot be read or written.
        """
        if name is not None and not _NAME.fullmatch(name):
            raise AccessError(f"'{name}' is no name: letters, digits, '.', '_' and '-' make one")
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
            tokens.append(Token(name, _hash(secret), created))
        return name, secret

    def revoke(self, name: str) -> None:
        """Raises AccessError where there is no such token, or the file cannot be changed."""
        with self._changing() as tokens:
            left = [token for token in tokens if token.name != name]
            if len(left) == len(tokens):
                names = ", ".join(token.name for token in tokens) or "none"
                raise AccessError(f"there is no token '{name}': there are {names}")
            tokens[:] = left

    def _current(self) -> tuple[Token, ...]:
        """What the file holds now. Where it cannot be read nobody gets in."""
        with self._lock:
            try:
                status = self._path.stat()
                stamp: tuple[int, ...] | None = (
                    status.st_mtime_ns,
                    status.st_ino,  # every change makes another file
                    status.st_size,
                )
            except OSError:
                stamp = None
            if stamp is None:
                self._tokens = ()
            elif stamp != self._stamp:
                try:
                    self._tokens = self.all()
                except AccessError as error:
                    log.error("nobody gets in: %s", error)
                    self._tokens = ()
            self._stamp = stamp
            return self._tokens

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[Token]]:
        """The tokens, to be changed in place; written when that ends without an error."""
        make_private_folder(self._folder)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            lock(folder, wait=True)  # two programs at a time would lose a change
            tokens = list(self.all())
            yield tokens
            data = {"version": _VERSION, "tokens": [asdict(token) for token in tokens]}
            write_private(self._path, (json.dumps(data, indent=2) + "\n").encode())
        finally:
            os.close(folder)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def make_private_folder(folder: Path) -> None:
    """Makes a folder for its owner only.

    Raises:
        AccessError: others may enter the one that is there, or it cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            raise AccessError(
                f"{folder} is open to other users: chmod 700 {folder} (or, on a file system "
                "without permissions, choose another folder by --config)"
            )
    except OSError as error:
        raise AccessError(f"cannot make {folder}: {error.strerror}") from error


def write_private(path: Path, data: bytes) -> None:
    """As :func:`esm_protos.private_files.write_private`, but raises AccessError."""
    try:
        private_files.write_private(path, data)
    except OSError as error:
        raise AccessError(f"cannot write {path}: {error.strerror}") from error
