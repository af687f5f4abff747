"""Cache of files that hosts send once and measure often: models, external data, inputs.

A file is named by its SHA-256 and appears only once it is complete. A client may use a file that
it has sent, or for which it has proved possession. The files of a block are linked into a folder
of its own, so files in use are never removed. Agents of one user can share a cache.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from esm_agent.providers import COMPILED
from esm_agent.serving.scratch import PREFIX, Scratch
from esm_protos.locks import lock
from esm_protos.messages import File
from esm_protos.user_folders import user_folder

_SHARE_OF_FREE = 2  # default size: half of the free space
_MOST_BYTES = 32 << 30  # maximum of the default size
_READ_BYTES = 1 << 20
# FAT, network and some union file systems have no hard links, or limit their number.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_NONCE_BYTES = 32
_MOST_OFFERED = 200_000
"""Maximum number of files of a lease; their hashes stay in memory as long as the lease."""


class CacheError(Exception):
    """Upload that differs from its announcement."""


class DamagedError(CacheError):
    """Upload with a wrong hash or too many bytes; its part of the file is dropped."""


class CacheFullError(Exception):
    """Files too large for the cache, or for the space that others leave."""


class NotCachedError(Exception):
    """File that is missing or still being uploaded; the host must offer it again."""


def cache_folder() -> Path:
    """Return systemd's cache folder, else the user's.

    Raises:
        OSError: this user has no home folder.
    """
    if given := os.environ.get("CACHE_DIRECTORY"):
        return Path(given)
    return user_folder("XDG_CACHE_HOME", ".cache") / "esm-agent"


@dataclass(frozen=True)
class LinkFolder:
    """Folder on the cache's disk into which the files of a client can be linked."""

    cache: Cache
    folder: Path
    client: str = ""

    def link(self, file: File, path: Path) -> None:
        """Link a file as :meth:`Cache.link`."""
        self.cache.link(self.client, file, path)


class MissingFile(NamedTuple):
    """File that a client must send, or for which it must prove possession.

    Attributes:
        file: Index among the offered files.
        have_bytes: Bytes of it that this client has already sent.
        nonce: Key of the proof; empty if the client must send the file.
    """

    file: int
    have_bytes: int = 0
    nonce: bytes = b""


@dataclass
class _Offered:
    """Files of a lease.

    Attributes:
        hashes: Hashes of its files.
        nonces: Open nonces, by hash.
        refused: Hashes of the files with a wrong proof.
    """

    hashes: set[bytes] = field(default_factory=set)
    nonces: dict[bytes, bytes] = field(default_factory=dict)
    refused: set[bytes] = field(default_factory=set)


class Cache:
    """Folder of files by hash; if it is full, it drops the least recently used files.

    Args:
        folder: Path of the folder; it is created for this user only.
        max_bytes: Size of all files; None for half of the free space on its disk, up to 32 GiB.
        has_lease: Function that returns whether a lease is valid; its files are kept.

    Raises:
        OSError: the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int | None = None,
        has_lease: Callable[[str], bool] = lambda lease_id: False,
    ) -> None:
        self.folder = folder
        self._make_folder()
        self._has_lease = has_lease
        self._offered: dict[str, _Offered] = {}
        self._owned: dict[str, set[bytes]] = {}
        self._arriving: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._scratch = Scratch(folder)
        if max_bytes is None:
            free = shutil.disk_usage(folder).free + self.used_bytes()
            max_bytes = min(free // _SHARE_OF_FREE, _MOST_BYTES)
        self.max_bytes = max_bytes

    def close(self) -> None:
        """Remove the links; the files stay."""
        self._scratch.close()

    def used_bytes(self) -> int:
        """Return the size of all files, of interrupted uploads and of running ones, bytes."""
        arriving = dict(self._arriving)
        stored = sum(max(size, arriving.pop(path, 0)) for _, size, path in self._entries())
        return stored + sum(arriving.values())

    def clear(self) -> None:
        """Drop all files except those of valid leases."""
        with self._lock:
            self._drop_unused(self.used_bytes())

    def offer(self, lease_id: str, client: str, files: Sequence[File]) -> list[MissingFile]:
        """Keep the files that the cache has, as long as the lease is valid.

        Args:
            lease_id: Id of the lease.
            client: Name of the client.
            files: Files that the lease will measure.

        Returns:
            Files that ``client`` must send, or for which it must prove possession.

        Raises:
            CacheFullError: the files are larger than the cache.
            OSError: the folder cannot be used.
        """
        self._make_folder()
        wanted = {file.sha256: file.size_bytes for file in files}
        if sum(wanted.values()) > self.max_bytes:
            raise CacheFullError(
                f"files of {sum(wanted.values()) / 1e6:.0f} MB; this agent's cache holds "
                f"{self.max_bytes / 1e6:.0f} MB: serve with a larger --cache-size"
            )
        with self._lock:
            offered = self._hold(lease_id, wanted)
            owned = set(self._owned.get(client, ()))
        missing: dict[bytes, MissingFile] = {}
        for index, file in enumerate(files):
            path = self._path(file)
            if file.sha256 in missing:
                continue
            if _size(path) != file.size_bytes:
                have = _size(_part(path, client)) or 0
                missing[file.sha256] = MissingFile(index, min(have, file.size_bytes))
                continue
            with contextlib.suppress(OSError):  # marks the file as just used
                os.utime(path, (time.time(), path.stat().st_mtime))
            if file.sha256 in owned:
                continue
            with self._lock:
                nonce = b""
                if file.sha256 not in offered.refused:
                    nonce = offered.nonces.setdefault(
                        file.sha256, secrets.token_bytes(_NONCE_BYTES)
                    )
            missing[file.sha256] = MissingFile(index, 0, nonce)
        return list(missing.values())

    def prove(self, lease_id: str, client: str, file: File, proof: bytes) -> None:
        """Let a client use a file, if it proves possession of the same file.

        A nonce is valid once. After a wrong proof the lease must send the file.

        Args:
            lease_id: Id of the lease.
            client: Name of the client.
            file: File to use.
            proof: HMAC-SHA256 of the file's content with the nonce of :meth:`offer`.

        Raises:
            CacheError: the proof is wrong.
            NotCachedError: the file or the nonce is missing: offer it again.
            OSError: the file cannot be read.
        """
        with self._lock:
            offered = self._offered.get(lease_id, _Offered())
            nonce = offered.nonces.pop(file.sha256, None)
            if file.sha256 in self._owned.get(client, ()):
                return
        path = self._path(file)
        if nonce is None or _size(path) != file.size_bytes:
            raise NotCachedError("no proof of this file is expected: offer it again")
        expected, content = hmac.new(nonce, digestmod=hashlib.sha256), hashlib.sha256()
        try:
            with path.open("rb") as source:
                while piece := source.read(_READ_BYTES):
                    expected.update(piece)
                    content.update(piece)
        except FileNotFoundError:
            raise NotCachedError("the file is gone: offer it again") from None
        if content.digest() != file.sha256:  # damaged on the disk
            path.unlink(missing_ok=True)
            raise NotCachedError("the file was damaged on the device's disk: offer it again")
        with self._lock:
            if not hmac.compare_digest(expected.digest(), proof):
                offered.refused.add(file.sha256)
                raise CacheError("the proof of a file is wrong: has the file changed?")
            self._own(client, file)

    def receive(
        self, lease_id: str, client: str, file: File, offset: int, data: Iterable[bytes]
    ) -> None:
        """Write a file from ``offset`` on; a client can continue its own interrupted upload.

        The space for the whole file is reserved before the first byte.

        Args:
            lease_id: Id of the lease.
            client: Name of the client.
            file: File to write.
            offset: Number of bytes that the client has already sent.
            data: Bytes from ``offset`` on.

        Raises:
            DamagedError: the hash differs from the announced one, or the file is too long.
            CacheError: the upload is incomplete.
            CacheFullError: the files of valid leases leave too little space.
            NotCachedError: another call uploads the file now, or the part before ``offset`` is
                gone.
            OSError: the file cannot be written.
        """
        path = self._path(file)
        part = _part(path, client)
        if _size(path) == file.size_bytes:
            self._receive_again(client, file, offset, data)
            return
        with self._room(lease_id, part, file), self._own_part(part) as target:
            part = Path(target.name)
            if offset > os.fstat(target.fileno()).st_size:
                raise NotCachedError("the beginning of the upload is gone")
            target.truncate(offset)
            try:
                _check(file, _digest(target), offset, data, target.write)
            except DamagedError:
                part.unlink()
                raise
            target.flush()
            os.fsync(target.fileno())  # after a power cut the content must match the name
            os.replace(part, path)
        with self._lock:
            self._own(client, file)

    def _receive_again(self, client: str, file: File, offset: int, data: Iterable[bytes]) -> None:
        """Check an upload of a file that the cache has; the client must send all of it."""
        with self._lock:
            if file.sha256 in self._owned.get(client, ()):
                return
        if offset:
            raise NotCachedError("the file has arrived from another client: offer it again")
        _check(file, hashlib.sha256(), 0, data, lambda piece: None)
        with self._lock:
            self._own(client, file)

    @contextmanager
    def _room(self, lease_id: str, part: Path, file: File) -> Iterator[None]:
        """Reserve space for an upload, which only one call at a time may write."""
        with self._lock:
            self._hold(lease_id, (file.sha256,))
            if part in self._arriving:
                raise NotCachedError(_UPLOADING)
            self._make_room(file.size_bytes - (_size(part) or 0))
            self._arriving[part] = file.size_bytes
        try:
            yield
        finally:
            with self._lock:
                del self._arriving[part]

    @contextmanager
    def _own_part(self, part: Path) -> Iterator[IO[bytes]]:
        """Open the file of an incomplete upload, locked against other agents.

        On a file system without locks it is a new file of this agent, so an interrupted upload
        starts again.
        """
        with _opened(part) as file:
            try:
                locked = lock(file, wait=False)
            except BlockingIOError:
                raise NotCachedError(_UPLOADING) from None
            if locked:
                yield file
                return
        part.unlink(missing_ok=True)
        with self._scratch.folder() as folder, _opened(folder / part.name) as file:
            yield file

    def _hold(self, lease_id: str, hashes: Iterable[bytes]) -> _Offered:
        """Add files to a lease, and drop the records of ended leases."""
        self._drop_ended()
        offered = self._offered.setdefault(lease_id, _Offered())
        offered.hashes.update(hashes)
        if len(offered.hashes) > _MOST_OFFERED:
            del self._offered[lease_id]
            raise CacheFullError(f"a lease has offered more than {_MOST_OFFERED} files")
        return offered

    def _drop_ended(self) -> None:
        for lease_id in [each for each in self._offered if not self._has_lease(each)]:
            del self._offered[lease_id]

    def _own(self, client: str, file: File) -> None:
        """Let a client use a file, and remove its incomplete upload."""
        self._owned.setdefault(client, set()).add(file.sha256)
        part = _part(self._path(file), client)
        if part not in self._arriving:
            part.unlink(missing_ok=True)

    @contextmanager
    def linked(self, client: str) -> Iterator[LinkFolder]:
        """Create a folder for the files of a client's block, for the duration of the context."""
        self._make_folder()
        with self._scratch.folder() as folder:
            yield LinkFolder(self, folder, client)

    def link(self, client: str, file: File, path: Path) -> None:
        """Link a file of a client's to ``path``, which is on the cache's disk.

        Raises:
            NotCachedError: the cache does not have the file, or it is not the client's.
            OSError: it cannot be linked.
        """
        with self._lock:
            if file.sha256 not in self._owned.get(client, ()):
                raise NotCachedError("a file of the block was neither sent nor proved: offer it")
        own = self._path(file)
        try:
            if own.stat().st_size == file.size_bytes:
                _link(own, path)
                return
        except FileNotFoundError:
            pass
        raise NotCachedError("a file of the block is not in the cache any more")

    def _make_folder(self) -> None:
        """Create the folder if it is missing, and close it to other users.

        Users may delete a cache folder while the agent runs, and models are private. A folder of
        other files, such as ``/``, stays as it is.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.folder.stat()
        if os.getuid() not in (status.st_uid, _ROOT):
            raise PermissionError(errno.EPERM, _OTHERS, str(self.folder))
        if status.st_mode & 0o077:
            if not all(_is_own(path.name) for path in self.folder.iterdir()):
                raise PermissionError(errno.EPERM, _SHARED, str(self.folder))
            try:
                self.folder.chmod(0o700)
            except PermissionError:
                raise PermissionError(errno.EPERM, _OTHERS, str(self.folder)) from None

    def _make_room(self, size: int) -> None:
        """Drop unused files until there is space for ``size`` more bytes.

        Raises:
            CacheFullError: the files in use leave too little space.
        """
        left = self.max_bytes - self.used_bytes()
        short = max(size - left, size - shutil.disk_usage(self.folder).free)
        left += self._drop_unused(short)
        if size > left:
            raise CacheFullError(
                f"a file of {size / 1e6:.0f} MB; files in use leave {left / 1e6:.0f} MB of this "
                "agent's cache: try again later, or serve with a larger --cache-size"
            )

    def _drop_unused(self, size: int) -> int:
        """Drop at least ``size`` bytes, least recently used files first.

        Returns:
            Number of bytes dropped; less than ``size`` if there was no more to drop.
        """
        self._drop_ended()
        held = set().union(*(offered.hashes for offered in self._offered.values()))
        dropped = 0
        for _, entry_size, path in sorted(self._entries()):
            if dropped >= size:
                break
            sha256 = bytes.fromhex(path.name.partition(".")[0])
            if sha256 not in held and path not in self._arriving:
                path.unlink(missing_ok=True)
                dropped += entry_size
                for owned in self._owned.values():
                    owned.discard(sha256)
        return dropped

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Yield time of last use, size and path of every file."""
        for path in self.folder.iterdir():
            if _NAME.fullmatch(path.name) and path.is_file():
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    yield status.st_atime, status.st_size, path

    def _path(self, file: File) -> Path:
        return self.folder / file.sha256.hex()


_NAME = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]*)?(\.part)?")
_ROOT = 0
_OTHERS = "it belongs to another user: choose another folder with --cache"
_SHARED = "it is open to other users and holds other files: choose an empty folder with --cache"
_UPLOADING = "the same file is being uploaded by another call"


def _is_own(name: str) -> bool:
    """Return whether the agent makes files or folders of this name in a cache folder."""
    return name == COMPILED or name.startswith(PREFIX) or bool(_NAME.fullmatch(name))


def _link(own: Path, path: Path) -> None:
    try:
        os.link(own, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(own, path)


def _part(path: Path, client: str) -> Path:
    """Return the path of a client's incomplete upload; every client has its own."""
    return path.with_name(f"{path.name}.{hashlib.sha256(client.encode()).hexdigest()[:16]}.part")


def _opened(part: Path) -> IO[bytes]:
    return open(part, "ab+", opener=lambda path, flags: os.open(path, flags, 0o600))


def _check(
    file: File,
    digest: hashlib._Hash,
    size: int,
    data: Iterable[bytes],
    write: Callable[[bytes], object],
) -> None:
    """Write the data after the first ``size`` bytes, and check the whole file.

    Raises:
        CacheError: the data do not complete the file.
    """
    for piece in data:
        size += len(piece)
        if size > file.size_bytes:
            raise DamagedError("the file is longer than announced")
        digest.update(piece)
        write(piece)
    if size < file.size_bytes:
        raise CacheError(f"the file broke off after {size} of {file.size_bytes} bytes")
    if digest.digest() != file.sha256:
        raise DamagedError("the file arrived with another SHA-256 than announced")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _digest(file: IO[bytes]) -> hashlib._Hash:
    """Return the digest of a file's content, and leave the file at its end."""
    digest = hashlib.sha256()
    file.seek(0)
    while piece := file.read(_READ_BYTES):
        digest.update(piece)
    return digest
