"""Databases of a store: a SQLite file, or a PostgreSQL database that a team shares.

This module holds every difference between the two. In PostgreSQL each campaign has its own
schema. The schema has one more table, with the files of the campaign folder, so that another
machine can restore the folder.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError

from esm_host.arguments import argument, either
from esm_host.errors import BusyError, DatasetError, RunExistsError, UsageError
from esm_protos.text import install

STORE_VARIABLE = "ESM_STORE"
"""Environment variable with the URL of a shared store."""
ID_FACT = "id"
"""Fact that identifies a campaign of a shared store; names can be used again."""

_WANTED = "give postgresql://USER@HOST/DATABASE"
_NAME = re.compile(r"(?!pg_|public$|information_schema$)[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_RESUME = either("esm_host.resume", "--resume")
_LOCKS = 0x65736D  # "esm": the class of our advisory locks
_CONNECTION = {
    "connect_timeout": "10",
    # An unreachable server is noticed within a minute.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}

_files = sa.Table(
    "files",
    sa.MetaData(),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)


class Database(ABC):
    """Database of one campaign's store.

    Attributes:
        engine: SQLAlchemy engine; it connects again after it was closed.
        schema: Schema of the tables; None where the database has only one.
        location: Name of the store in messages.
        campaign: Name of the campaign in messages.
        facts: Facts of the store besides its schema version.
    """

    engine: sa.Engine
    schema: str | None = None
    location: str
    campaign: str
    facts: Mapping[str, str]

    @abstractmethod
    def exists(self) -> bool:
        """Return whether the database holds tables."""

    @abstractmethod
    def making(self) -> AbstractContextManager[sa.Connection]:
        """Open a transaction that creates the store's tables."""

    @contextmanager
    def migrating(self) -> Iterator[sa.Connection]:
        """Open a transaction that migrates an older store's tables."""
        with self.engine.begin() as connection:
            yield connection

    @abstractmethod
    def snapshot(self) -> AbstractContextManager[sa.Connection]:
        """Open a connection that sees one state, whatever other programs write meanwhile."""

    @abstractmethod
    def check(self) -> None:
        """Check the database for damage.

        Raises:
            DatasetError: the database is damaged.
        """

    @abstractmethod
    def unreadable(self, reason: object) -> DatasetError:
        """Return the error of a failed read: one line with its cure."""

    @abstractmethod
    def unwritable(self, error: DBAPIError) -> DatasetError:
        """Return the error of a failed write: one line with its cure."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""


class SqliteFile(Database):
    """SQLite file; opened for reading only if it or its folder is write-protected."""

    def __init__(self, path: Path) -> None:
        # Not a URL string, because a path may contain "?" or "%".
        url = sa.URL.create("sqlite", database=str(path))
        self.engine = sa.create_engine(url, creator=self._connect)
        sa.event.listen(self.engine, "connect", _check_foreign_keys)
        self.location = str(path)
        self.campaign = str(path.parent)
        self.facts = {}
        self._path = path
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._migrating = False

    def exists(self) -> bool:
        return self._path.exists()

    def _connect(self) -> sqlite3.Connection:
        """Connect; a connection may move between threads, but only one may use it at a time."""
        path = self._path
        if self._may_be_written():
            return sqlite3.connect(path, check_same_thread=False)
        # SQLite reads the write-ahead log through an index that it writes beside it.
        if self._copy is None and self._log.exists() and self._log.stat().st_size:
            self._copy = self._copied()
        if self._copy is not None:
            found = sqlite3.connect(Path(self._copy.name) / path.name, check_same_thread=False)
            if not self._migrating:
                found.execute("PRAGMA query_only = ON")
            return found
        uri = f"file:{quote(os.path.abspath(path))}?mode=ro&immutable=1"
        return sqlite3.connect(uri, uri=True, check_same_thread=False)

    @property
    def _log(self) -> Path:
        return self._path.with_name(f"{self._path.name}-wal")

    def _may_be_written(self) -> bool:
        path = self._path
        return not path.exists() or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))

    def _copied(self) -> tempfile.TemporaryDirectory[str]:
        folder = tempfile.TemporaryDirectory(prefix="esm-")
        for file in (self._path, self._log):
            if file.exists():
                shutil.copyfile(file, Path(folder.name) / file.name)
        return folder

    @contextmanager
    def migrating(self) -> Iterator[sa.Connection]:
        if not self._may_be_written() and self._copy is None:
            self._copy = self._copied()
        self._migrating = True
        self.engine.dispose()
        try:
            with self.engine.begin() as connection:
                yield connection
        finally:
            self._migrating = False
            self.engine.dispose()

    @contextmanager
    def making(self) -> Iterator[sa.Connection]:
        with self.engine.connect() as connection:
            # Survives kill -9 at any point; a power cut may lose the last transaction.
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        with self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")  # sqlite3 begins none for reading
            yield connection

    def check(self) -> None:
        with self.engine.connect() as connection:
            said = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if said != "ok":
            raise self.unreadable(said)

    def unreadable(self, reason: object) -> DatasetError:
        return DatasetError(
            f"{self.location} is not a usable store ({detail_of(reason)}): restore it from a copy, "
            f"or begin a new campaign in another {argument('run')} folder"
        )

    def unwritable(self, error: DBAPIError) -> DatasetError:
        return DatasetError(
            f"{self.location} cannot be written ({detail_of(error)}): free disk space or correct "
            f"its permissions, then continue with {_RESUME}"
        )

    def close(self) -> None:
        self.engine.dispose()
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None


class PostgresSchema(Database):
    """Schema of a PostgreSQL database, named after its campaign.

    Args:
        url: URL of the database; its password is kept until the program ends.
        name: Name of the campaign.
        campaign_id: Id that the campaign must have; None accepts any.

    Raises:
        UsageError: the URL is invalid, or the name cannot be the name of a schema.
        DatasetError: the PostgreSQL driver is not installed.
    """

    def __init__(self, url: str, name: str, campaign_id: str | None = None) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"'{name}' cannot be the name of a campaign in a shared store: give a "
                f"{argument('run')} whose last part has at most 63 letters, digits, '.', '_' "
                "and '-'"
            )
        self.url = without_password(url)
        self.name = self.schema = name
        self.location = f"campaign '{name}' of {self.url}"
        self.campaign = self.location
        self.facts = {} if campaign_id is None else {ID_FACT: campaign_id}
        # The only connection holds the lock, so no write can follow the loss of the lock.
        self.engine = _engine(self.url, schema_translate_map={None: name})
        sa.event.listen(self.engine, "connect", self._on_connect)
        self._alone = False

    def exists(self) -> bool:
        with self._reading() as connection:
            return sa.inspect(connection).has_table("facts", self.name)

    @contextmanager
    def making(self) -> Iterator[sa.Connection]:
        with self.engine.begin() as connection:
            connection.execute(sa.schema.CreateSchema(self.name, if_not_exists=True))
            _files.create(connection, checkfirst=True)
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        with self.engine.connect() as connection:
            yield connection.execution_options(isolation_level="REPEATABLE READ")

    def check(self) -> None:
        """Do nothing: the server checks its own files."""

    def check_new(self) -> None:
        """Check that a campaign of this name can begin.

        Raises:
            RunExistsError: a campaign of this name exists.
            DatasetError: the database is unreachable, or does not permit a new campaign.
        """
        with self._reading() as connection:
            inspector = sa.inspect(connection)
            if inspector.has_schema(self.name):
                raise RunExistsError(
                    f"{self.url} already has a campaign '{self.name}': give another "
                    f"{argument('run')}, or continue that one with esm-host campaigns attach "
                    f"{self.name}"
                )
            permitted = sa.func.has_database_privilege(sa.func.current_database(), "CREATE")
            if not connection.scalar(sa.select(permitted)):
                raise DatasetError(
                    f"{self.url} does not permit you to begin a campaign: ask its owner for GRANT "
                    "CREATE ON DATABASE (see docs/team.md)"
                )

    def unreadable(self, reason: object) -> DatasetError:
        return self._error("read", reason)

    def unwritable(self, error: DBAPIError) -> DatasetError:
        return self._error("written", error)

    def close(self) -> None:
        if not self._alone:
            self.engine.dispose()

    # Files beside the store

    def keep_files(self, files: Mapping[str, bytes]) -> None:
        """Store files by name; they replace all files stored before."""
        try:
            with self.engine.begin() as connection:
                connection.execute(_files.delete())
                if files:
                    rows = [{"name": name, "data": data} for name, data in files.items()]
                    connection.execute(_files.insert(), rows)
        except DBAPIError as error:
            raise self.unwritable(error) from error

    def kept_files(self) -> dict[str, bytes]:
        """Return the stored files by name."""
        with self._reading() as connection:
            return {row.name: row.data for row in connection.execute(sa.select(_files))}

    # One host at a time

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the campaign against other hosts, until the context or the program ends.

        Raises:
            BusyError: another host runs the campaign.
        """
        self.engine.dispose()  # the next connection acquires the lock
        self._alone = True
        try:
            with self._reading():
                pass
            yield
        finally:
            self._alone = False
            self.engine.dispose()

    def _on_connect(self, connection: Any, _: object) -> None:
        if not self._alone:
            return
        with connection.cursor() as cursor:
            # The lock of a crashed host is released within a minute.
            cursor.execute("SET tcp_keepalives_idle = 30")
            cursor.execute("SET tcp_keepalives_interval = 10")
            cursor.execute("SET tcp_keepalives_count = 3")
            key = _key(self.name)
            signed = key - (key >> 31 << 32)
            cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (_LOCKS, signed))
            (free,) = cursor.fetchone()
            if not free:
                cursor.execute(_HOLDERS)
                who = dict(cursor.fetchall()).get(key)
        connection.commit()
        if not free:
            connection.close()
            raise BusyError(
                f"{who or 'another esm-host'} is running {self.location}: wait for it to end"
            )

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        try:
            with self.engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            raise self.unreadable(error) from error

    def _error(self, done: str, reason: object) -> DatasetError:
        # The connection failed, not a statement.
        if isinstance(reason, DBAPIError) and (
            reason.connection_invalidated or reason.statement is None
        ):
            error = _unreachable(self.url, reason)
        else:
            error = DatasetError(
                f"{self.location} cannot be {done} ({detail_of(reason)}): its database may be "
                "full, its tables damaged or not yours (see docs/team.md)"
            )
        if not self._alone:
            return error
        return DatasetError(f"{error.marked}; then continue with {_RESUME}")


# All campaigns of a database

_HOLDERS = f"""
SELECT objid::bigint, application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND classid = {_LOCKS} AND objsubid = 2 AND granted
AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
"""Query of the running campaigns: key of the lock, name of the program that holds it."""

_CAMPAIGNS = """
SELECT nspname FROM pg_namespace n
WHERE 3 = (SELECT count(*) FROM pg_class c WHERE c.relnamespace = n.oid
           AND relname IN ('facts', 'plan', 'files') AND relkind = 'r')
ORDER BY nspname
"""


def campaigns(url: str) -> dict[str, bool]:
    """Return the campaigns of a shared store, and whether a host runs each.

    Raises:
        UsageError: the URL is invalid.
        DatasetError: the database is unreachable.
    """
    url = without_password(url)
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            names = connection.scalars(sa.text(_CAMPAIGNS)).all()
            held = set(connection.scalars(sa.text(_HOLDERS)))
    except DBAPIError as error:
        raise _unreachable(url, error) from error
    finally:
        engine.dispose()
    return {name: _key(name) in held for name in names}


def _key(name: str) -> int:
    """Return the key of a campaign's lock, as the server lists it."""
    return zlib.crc32(name.encode())


def without_password(url: str) -> str:
    """Return a database URL without its password, which is kept until the program ends.

    Raises:
        UsageError: the URL is not one of a PostgreSQL database.
    """
    try:
        parts = sa.make_url(url)
    except (ArgumentError, ValueError):
        raise UsageError(f"{argument('store')} is not a URL: {_WANTED}") from None
    if parts.drivername.partition("+")[0] not in ("postgresql", "postgres") or not parts.database:
        raise UsageError(f"{argument('store')} is not the URL of a PostgreSQL database: {_WANTED}")
    if {"password", "sslpassword"} & parts.query.keys():
        raise UsageError(
            f"{argument('store')} has a password among its options: put it into ~/.pgpass"
        )
    plain = sa.URL.create(
        "postgresql",
        parts.username,
        host=parts.host,
        port=parts.port,
        database=parts.database,
        query=parts.query,
    ).render_as_string()
    if parts.password:
        _passwords[plain] = str(parts.password)
    return plain


_passwords: dict[str, str] = {}
"""Passwords by the URLs that they were removed from."""


def _engine(url: str, **options: Any) -> sa.Engine:
    if url not in _passwords and (given := os.environ.get(STORE_VARIABLE)):
        with suppress(UsageError):
            without_password(given)
    parts = sa.make_url(url).set(drivername="postgresql+psycopg", password=_passwords.get(url))
    own = {**_CONNECTION, "application_name": f"esm-host on {socket.gethostname()}"}
    try:
        return sa.create_engine(
            parts.set(query={**own, **parts.query}),
            pool_size=1,
            max_overflow=0,
            execution_options=options,
        )
    except ImportError as error:
        raise DatasetError(
            f"a store in PostgreSQL needs its driver ({error}): {install('postgres')}"
        ) from error


def _unreachable(url: str, error: DBAPIError) -> DatasetError:
    """Return the error of a database that is unreachable or refuses access, with its cure."""
    # The driver lists every address that it tried; the last reason is enough.
    said = [line for line in str(error.orig).splitlines() if "failed: " in line]
    detail = said[-1].rpartition("failed: ")[2] if said else detail_of(error)
    detail = detail.removeprefix("FATAL:").strip()
    cures = {
        "password": "put the password into ~/.pgpass or PGPASSWORD, and the user into the URL",
        "permission denied": "ask its owner for GRANT CONNECT (see docs/team.md)",
        "pg_hba": "its pg_hba.conf must permit your host (see docs/team.md)",
        "role": "give another user (postgresql://USER@HOST/DATABASE), or create that one",
        "does not exist": "create it with createdb, or correct the URL",
    }
    cure = next((cure for word, cure in cures.items() if word in detail), None)
    return DatasetError(
        f"{url} cannot be used ({detail}): {cure or 'check that its server runs and is reachable'}"
    )


def detail_of(reason: object) -> str:
    """Return the first line of a database error."""
    lines = str(getattr(reason, "orig", reason)).strip().splitlines()
    return lines[0].removesuffix(":") if lines else "no reason given"


def _check_foreign_keys(connection: Any, _: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
