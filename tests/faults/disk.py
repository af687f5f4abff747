"""A small disk of its own, which can be filled without harm."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

SIZE_BYTES = 48 << 20
INODES = 400


class SmallDisk:
    """A mounted file system.

    Args:
        folder: where it is mounted.
        kind: "ext4" or "tmpfs".
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Take every byte that is free; then no folder can be made on ext4 either."""
        with contextlib.suppress(FileExistsError, OSError):
            self._ballast.mkdir()
        for size in (1 << 20, 1 << 12, 1):
            with (
                contextlib.suppress(OSError),
                (self._ballast / f"bytes {size}").open("wb", buffering=0) as file,
            ):
                while True:
                    file.write(bytes(size))

    def take_inodes(self) -> None:
        """Take every inode that is free; there is room for data, but for no new file or folder."""
        with contextlib.suppress(OSError):
            self._ballast.mkdir(exist_ok=True)
            for number in range(INODES):
                (self._ballast / f"inode {number}").touch()

    def free(self) -> None:
        """Give back what was taken."""
        with contextlib.suppress(FileNotFoundError):
            for path in self._ballast.iterdir():
                path.unlink()
            self._ballast.rmdir()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk | None]:
    """Mount an ext4 from an image in ``folder``, else a tmpfs; None where neither is allowed."""
    area = folder / "disk"
    area.mkdir()
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    make = ["mkfs.ext4", "-q", "-F", "-m", "0", "-N", str(INODES), str(image)]
    commands = {
        "ext4": [make, ["mount", "-o", "loop", str(image), str(area)]],
        "tmpfs": [
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES},nr_inodes={INODES}", "x", str(area)]
        ],
    }
    kind = next((kind for kind, each in commands.items() if all(map(_works, each))), None)
    if kind is None:
        yield None
        return
    try:
        yield SmallDisk(area, kind)
    finally:
        subprocess.run(["umount", "--lazy", str(area)], check=True)


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False
