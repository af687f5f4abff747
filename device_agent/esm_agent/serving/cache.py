"""Files that hosts send once and measure often: models, their external data, inputs.

A file is named by its SHA-256 and is there only when all of it is. What is measured is linked
into a folder of its own before, so nothing that is in use is ever taken away. Agents of one user
may share a cache.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from esm_agent.serving.scratch import make_scratch, temporary_folder
from esm_protos.locks import lock
from esm_protos.messages import File
from esm_protos.user_folders import user_folder

_PART = ".part"
_SHARE_OF_FREE = 2  # by default, half of what is free
_MOST_BYTES = 32 << 30  # by default
_READ_BYTES = 1 << 20
# FAT, network and some union file systems have no hard links, or only a few to a file.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


class CacheError(Exception):
    """What was sent is not what was announced."""


class CacheFullError(Exception):
    """The files are larger than the cache, or than what others leave of it."""


class NotCachedError(Exception):
    """A file is not there, or is just being uploaded: offer it again."""


def cache_folder() -> Path:
    """Where systemd says, else the user's cache folder; raises OSError without a home folder."""
    if given := os.environ.get("CACHE_DIRECTORY"):
        return Path(given)
    return user_folder("XDG_CACHE_HOME", ".cache") / "esm-agent"


@dataclass(frozen=True)
class Linked:
    """A folder on the cache's disk, and what links files into it."""

    cache: Cache
    folder: Path


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
        self._kept: dict[str, set[bytes]] = {}
        self._lock = threading.Lock()
        self._scratch = make_scratch(folder)
        if max_bytes is None:
            free = shutil.disk_usage(folder).free + self.used_bytes()
            max_bytes = min(free // _SHARE_OF_FREE, _MOST_BYTES)
        self.max_bytes = max_bytes

    def close(self) -> None:
        """Removes what was linked; the files stay."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def used_bytes(self) -> int:
        """Of files and of uploads that were broken off."""
        return sum(size for _, size, _ in self._entries())

    def clear(self) -> None:
        """Drops all files but those of living leases."""
        with self._lock:
            self._drop_unused(self.used_bytes())

    def offer(self, lease_id: str, files: Sequence[File]) -> list[tuple[int, int]]:
        """Keeps the files that are there for as long as the lease lives.

        Returns:
            Index of every file that is missing, with how many of its bytes are there.

        Raises:
            CacheFullError: all of them together are more than the cache takes.
        """
        self._make_folder()
        wanted = {file.sha256: file.size_bytes for file in files}
        if sum(wanted.values()) > self.max_bytes:
            raise CacheFullError(
                f"files of {sum(wanted.values()) / 1e6:.0f} MB; this agent's cache takes "
                f"{self.max_bytes / 1e6:.0f} MB: serve with a larger --cache-size"
            )
        with self._lock:
            self._kept.setdefault(lease_id, set()).update(wanted)
        missing: dict[bytes, tuple[int, int]] = {}
        for index, file in enumerate(files):
            path = self._path(file)
            if file.sha256 in missing:
                continue
            if _size(path) == file.size_bytes:
                with contextlib.suppress(OSError):  # asked for just now, and no other file
                    os.utime(path, (time.time(), path.stat().st_mtime))
            else:
                missing[file.sha256] = index, min(_size(_part(path)) or 0, file.size_bytes)
        return list(missing.values())

    def receive(self, lease_id: str, file: File, offset: int, data: Iterable[bytes]) -> None:
        """Writes a file from ``offset`` on; what is broken off can be gone on with.

        Raises:
            CacheError: it is not the file that its hash and size say.
            CacheFullError: what living leases keep leaves no room for it.
            NotCachedError: somebody else uploads it just now, or it is gone from ``offset``.
            OSError: it cannot be written.
        """
        path = self._path(file)
        part = _part(path)
        with self._lock:
            self._kept.setdefault(lease_id, set()).add(file.sha256)
            self._make_room(file.size_bytes - (_size(part) or 0))
        with self._own_part(part) as target:
            part = Path(target.name)
            if _size(path) == file.size_bytes:
                part.unlink(missing_ok=True)
                return
            if offset > os.fstat(target.fileno()).st_size:
                raise NotCachedError("the beginning of the upload is gone")
            target.truncate(offset)
            digest = _digest(target)
            size = offset
            for piece in data:
                size += len(piece)
                if size > file.size_bytes:
                    part.unlink()
                    raise CacheError("the file is longer than announced")
                digest.update(piece)
                target.write(piece)
            if size < file.size_bytes:
                raise CacheError(f"the file broke off after {size} of {file.size_bytes} bytes")
            if digest.digest() != file.sha256:
                part.unlink()
                raise CacheError("the file arrived with another SHA-256 than announced")
            target.flush()
            os.fsync(target.fileno())  # the name is a promise that a power cut must not break
            os.replace(part, path)

    @contextmanager
    def _own_part(self, part: Path) -> Iterator[IO[bytes]]:
        """The beginning of an upload, which nobody else writes to.

        Without locks that is a file of this agent's own. What is broken off begins again then.
        """
        with part.open("ab+") as file:
            try:
                locked = lock(file, wait=False)
            except BlockingIOError:
                raise NotCachedError("the same file is being uploaded by another host") from None
            if locked:
                yield file
                return
        part.unlink(missing_ok=True)
        with temporary_folder(self._scratch) as folder, (folder / part.name).open("ab+") as file:
            yield file

    @contextmanager
    def linked(self) -> Iterator[Linked]:
        """A folder in which a block finds its files, for as long as it is there."""
        self._make_folder()
        with temporary_folder(self._scratch) as folder:
            yield Linked(self, folder)

    def link(self, file: File, path: Path) -> None:
        """Lets ``path``, on the cache's own disk, be the file.

        Raises:
            NotCachedError: it is not there (any more).
        """
        own = self._path(file)
        try:
            if own.stat().st_size == file.size_bytes:
                _link(own, path)
                return
        except FileNotFoundError:
            pass
        raise NotCachedError("a file of the block is not in the cache any more")

    def _make_folder(self) -> None:
        """Also while the agent runs: people clear what is called a cache."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _make_room(self, size: int) -> None:
        """For so many more bytes."""
        left = self.max_bytes - self.used_bytes()
        left += self._drop_unused(size - left)
        if size > left:
            raise CacheFullError(
                f"a file of {size / 1e6:.0f} MB; what others use leaves {left / 1e6:.0f} MB of "
                "this agent's cache: wait for them, or serve with a larger --cache-size"
            )

    def _drop_unused(self, size: int) -> int:
        """At least so many bytes, those first that nobody asked for the longest; returns how many
        there were to drop."""
        self._kept = {each: kept for each, kept in self._kept.items() if self._lease_lives(each)}
        held = set().union(*self._kept.values())
        dropped = 0
        for _, entry_size, path in sorted(self._entries()):
            if dropped >= size:
                break
            if bytes.fromhex(path.name.removesuffix(_PART)) not in held:
                path.unlink(missing_ok=True)
                dropped += entry_size
        return dropped

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """When it was asked for, size and path of every file."""
        for path in self.folder.iterdir():
            name = path.name.removesuffix(_PART)
            if len(name) == 2 * hashlib.sha256().digest_size and path.is_file():
                with contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    yield found.st_atime, found.st_size, path

    def _path(self, file: File) -> Path:
        return self.folder / file.sha256.hex()


def _link(own: Path, path: Path) -> None:
    try:
        os.link(own, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(own, path)


def _part(path: Path) -> Path:
    return path.with_name(path.name + _PART)


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
