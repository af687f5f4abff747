"""A PostgreSQL server of the tests' own, from the system's packages."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SUPERUSER = "admin"
PASSWORD = "s3cret/word"  # that TCP asks for


def programs() -> Path | None:
    """The folder of the newest server's programs."""
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = max(found, key=lambda path: float(path.parts[-3]), default=None)
    path = newest or shutil.which("postgres")
    return Path(path).parent if path else None


class Server:
    """On a socket in a folder of its own, where it trusts everybody, and on a loopback port, where
    it wants passwords."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._as: dict[str, Any] = {"cwd": folder}
        if os.getuid() == 0:  # as whom it refuses to run
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            self._as |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        initdb = [programs / "initdb", "--pgdata", folder / "data", "--username", SUPERUSER]
        initdb += [
            "--auth-local",
            "trust",
            "--auth-host",
            "scram-sha-256",
            "--pwfile",
            folder / "password",
        ]
        initdb += ["--encoding", "UTF8", "--no-locale", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, **self._as)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._folder,
            "fsync": "off",
            "max_connections": 20,
            "shared_buffers": "16MB",
        }
        command = [self._programs / "postgres", "-D", self._folder / "data"]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._as)
        ready = [self._programs / "pg_isready", "-q", "-h", self._folder, "-p", str(self.port)]
        deadline = time.monotonic() + 60
        while subprocess.run(ready).returncode:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        """At once, whoever is connected."""
        assert self._process is not None
        self._process.send_signal(3)  # SIGQUIT
        self._process.wait(timeout=60)

    def database(self, name: str) -> str:
        """A new one's URL, by the socket."""
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def empty(self, url: str) -> None:
        """Drops the schemas that a test has made; quicker than a database for each."""
        made = "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|public|information_)'"
        for name in self.sql(made, url).splitlines():
            self.sql(f'DROP SCHEMA "{name}" CASCADE', url)

    def by_tcp(self, url: str) -> str:
        """The same database there."""
        parts = re.match(r"postgresql://(\w+)@/(\w+)", url)
        assert parts is not None
        return f"postgresql://{parts[1]}@127.0.0.1:{self.port}/{parts[2]}"

    def url(self, name: str) -> str:
        return f"postgresql://{SUPERUSER}@/{name}?host={self._folder}&port={self.port}"

    def sql(self, text: str, url: str | None = None) -> str:
        """What ``psql`` answers, rows in lines and columns by ``|``."""
        psql = [self._programs / "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
        command = [*psql, url or self.url("postgres")]
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@contextmanager
def serving() -> Iterator[Server | None]:
    """A server; None where there are no programs for it."""
    found = programs()
    if found is None:
        yield None
        return
    # Others' users cannot enter pytest's own folders, and a socket's path is short.
    folder = Path(tempfile.mkdtemp(prefix="esm-pg-"))
    try:
        server = Server(found, folder)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
