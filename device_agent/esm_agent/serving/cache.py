"""Files that hosts send once and measure often: models, their external data, inputs.

A file is named by its SHA-256 and is there only when all of it is. A client may use a file that it
has sent, or of which it has proved that it has it. What is measured is linked into a folder of its
own before, so nothing that is in use is ever taken away. Agents of one user may share a cache.
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

from esm_agent.serving.scratch import Scratch
from esm_protos.locks import lock
from esm_protos.messages import File
from esm_protos.user_folders import user_folder

_SHARE_OF_FREE = 2  # by default, half of what is free
_MOST_BYTES = 32 << 30  # by default
_READ_BYTES = 1 << 20
# FAT, network and some union file systems have no hard links, or only a few to a file.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_NONCE_BYTES = 32
_MOST_OFFERED = 200_000
"""Files of one lease: its hashes are in memory for as long as it lives."""


class CacheError(Exception):
    """What was sent is not what was announced."""


class DamagedError(CacheError):
    """The bytes that arrived have another hash; what there was of the file is dropped."""


class CacheFullError(Exception):
    """The files are larger than the cache, or than what others leave of it."""


class NotCachedError(Exception):
    """A file is not there, or is just being uploaded: offer it again."""


def cache_folder() -> Path:
    """Return systemd's folder, else the user's; raise OSError without a home folder."""
    if given := os.environ.get("CACHE_DIRECTORY"):
        return Path(given)
    return user_folder("XDG_CACHE_HOME", ".cache") / "esm-agent"


@dataclass(frozen=True)
class Linked:
    """A folder on the cache's disk, and the client whose files may be linked into it."""

    cache: Cache
    folder: Path
    client: str = ""

    def link(self, file: File, path: Path) -> None:
        """As :meth:`Cache.link`."""
        self.cache.link(self.client, file, path)


class Missing(NamedTuple):
    """A file that a client has to send, or to prove.

    Attributes:
        file: index among those that were offered.
        have_bytes: size of what this client has sent of it before.
        nonce: key of the proof; empty where the data are wanted.
    """

    file: int
    have_bytes: int = 0
    nonce: bytes = b""


@dataclass
class _Offered:
    """What the agent remembers of a lease: hashes of its files, its open nonces by hash, and the
    hashes of which a proof was wrong."""

    hashes: set[bytes] = field(default_factory=set)
    nonces: dict[bytes, bytes] = field(default_factory=dict)
    refused: set[bytes] = field(default_factory=set)


class Cache:
    """A folder of files by hash, which makes room by dropping what was not asked for the longest.

    Args:
        folder: made if it is not there, for this user only.
        max_bytes: of all files; None: half of what is free on its disk, up to 32 GiB.
        lease_lives: whether a lease's files are still to be kept.

    Raises:
        OSError: the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int | None = None,
        lease_lives: Callable[[str], bool] = lambda lease_id: False,
    ) -> None:
        self.folder = folder
        self._make_folder()
        self._lease_lives = lease_lives
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
        """Remove what was linked; the files stay."""
        self._scratch.close()

    def used_bytes(self) -> int:
        """Return the size of all files, of uploads that broke off, and of those that arrive now."""
        arriving = dict(self._arriving)
        there = sum(max(size, arriving.pop(path, 0)) for _, size, path in self._entries())
        return there + sum(arriving.values())

    def clear(self) -> None:
        """Drop all files but those of living leases."""
        with self._lock:
            self._drop_unused(self.used_bytes())

    def offer(self, lease_id: str, client: str, files: Sequence[File]) -> list[Missing]:
        """Keep the files that are there for as long as the lease lives.

        Returns:
            Every file that ``client`` has to send, or to prove, before it is linked.

        Raises:
            CacheFullError: all of them together are more than the cache takes.
            OSError: the folder cannot be used.
        """
        self._make_folder()
        wanted = {file.sha256: file.size_bytes for file in files}
        if sum(wanted.values()) > self.max_bytes:
            raise CacheFullError(
                f"files of {sum(wanted.values()) / 1e6:.0f} MB; this agent's cache takes "
                f"{self.max_bytes / 1e6:.0f} MB: serve with a larger --cache-size"
            )
        with self._lock:
            offered = self._hold(lease_id, wanted)
            owned = set(self._owned.get(client, ()))
        missing: dict[bytes, Missing] = {}
        for index, file in enumerate(files):
            path = self._path(file)
            if file.sha256 in missing:
                continue
            if _size(path) != file.size_bytes:
                have = _size(_part(path, client)) or 0
                missing[file.sha256] = Missing(index, min(have, file.size_bytes))
                continue
            with contextlib.suppress(OSError):  # asked for just now, and no other file
                os.utime(path, (time.time(), path.stat().st_mtime))
            if file.sha256 in owned:
                continue
            with self._lock:
                nonce = b""
                if file.sha256 not in offered.refused:
                    nonce = offered.nonces.setdefault(
                        file.sha256, secrets.token_bytes(_NONCE_BYTES)
                    )
            missing[file.sha256] = Missing(index, 0, nonce)
        return list(missing.values())

    def prove(self, lease_id: str, client: str, file: File, proof: bytes) -> None:
        """Give a client the use of a file that it has as well.

        A nonce serves once. After a wrong proof the lease has to send the file.

        Args:
            proof: HMAC-SHA256 of the file's content, with the nonce that the lease got for it.

        Raises:
            CacheError: the proof is wrong.
            NotCachedError: the file or the nonce is not there: offer it again.
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
        if content.digest() != file.sha256:  # the disk has changed it
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
        """Write a file from ``offset`` on; the same client can go on with what is broken off.

        Room for all of it is reserved before the first byte.

        Raises:
            DamagedError: it has another hash than announced.
            CacheError: it is not the file that its hash and size say.
            CacheFullError: what living leases keep leaves no room for it.
            NotCachedError: the client uploads it just now, or it is gone from ``offset``.
            OSError: it cannot be written.
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
            os.fsync(target.fileno())  # the name is a promise that a power cut must not break
            os.replace(part, path)
        with self._lock:
            self._own(client, file)

    def _receive_again(self, client: str, file: File, offset: int, data: Iterable[bytes]) -> None:
        """Check what a client sends of a file that is there: only having all of it counts."""
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
        """Keep room for a file that arrives; one call at a time writes it."""
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
        """Open the beginning of an upload, which nobody else writes to.

        Without locks that is a file of this agent's own. What is broken off begins again then.
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
        """Remember a lease's files, and forget those of dead leases."""
        self._forget_dead()
        offered = self._offered.setdefault(lease_id, _Offered())
        offered.hashes.update(hashes)
        if len(offered.hashes) > _MOST_OFFERED:
            del self._offered[lease_id]
            raise CacheFullError(f"one lease has offered more than {_MOST_OFFERED} files")
        return offered

    def _forget_dead(self) -> None:
        for lease_id in [each for each in self._offered if not self._lease_lives(each)]:
            del self._offered[lease_id]

    def _own(self, client: str, file: File) -> None:
        """Let a client use a file from now on; what it sent of it before is in the way."""
        self._owned.setdefault(client, set()).add(file.sha256)
        part = _part(self._path(file), client)
        if part not in self._arriving:
            part.unlink(missing_ok=True)

    @contextmanager
    def linked(self, client: str) -> Iterator[Linked]:
        """Make a folder in which a client's block finds its files, for as long as it is there."""
        self._make_folder()
        with self._scratch.folder() as folder:
            yield Linked(self, folder, client)

    def link(self, client: str, file: File, path: Path) -> None:
        """Let ``path``, on the cache's own disk, be a file of the client's.

        Raises:
            NotCachedError: it is not there (any more), or not the client's.
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
        """Also while the agent runs: people clear what is called a cache.

        Models are nobody else's to read: a folder that others may enter is closed to them.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.folder.stat()
        if os.getuid() not in (found.st_uid, _ROOT):
            raise PermissionError(errno.EPERM, _OTHERS, str(self.folder))
        if found.st_mode & 0o077:
            try:
                self.folder.chmod(0o700)
            except PermissionError:
                raise PermissionError(errno.EPERM, _OTHERS, str(self.folder)) from None

    def _make_room(self, size: int) -> None:
        """For so many more bytes."""
        left = self.max_bytes - self.used_bytes()
        short = max(size - left, size - shutil.disk_usage(self.folder).free)
        left += self._drop_unused(short)
        if size > left:
            raise CacheFullError(
                f"a file of {size / 1e6:.0f} MB; what others use leaves {left / 1e6:.0f} MB of "
                "this agent's cache: wait for them, or serve with a larger --cache-size"
            )

    def _drop_unused(self, size: int) -> int:
        """Drop at least so many bytes, those first that nobody asked for the longest; return how
        many there were to drop."""
        self._forget_dead()
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
        """When it was asked for, size and path of every file."""
        for path in self.folder.iterdir():
            if _NAME.fullmatch(path.name) and path.is_file():
                with contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    yield found.st_atime, found.st_size, path

    def _path(self, file: File) -> Path:
        return self.folder / file.sha256.hex()


_NAME = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]*)?(\.part)?")
_ROOT = 0
_OTHERS = "it belongs to another user: choose another folder by --cache"
_UPLOADING = "the same file is being uploaded by another call"


def _link(own: Path, path: Path) -> None:
    try:
        os.link(own, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(own, path)


def _part(path: Path, client: str) -> Path:
    """Return the place of a client's upload until it is whole: no client goes on with another's."""
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
    """Write what comes after the first ``size`` bytes; raise CacheError if it is not the file."""
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
    """Of what is in the file, which is then at its end."""
    digest = hashlib.sha256()
    file.seek(0)
    while piece := file.read(_READ_BYTES):
        digest.update(piece)
    return digest
