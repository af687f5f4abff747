"""Where a store's tables are: in a SQLite file, or in a PostgreSQL database that a team shares.

All in which the two differ is here. In PostgreSQL every campaign has a schema of its own, with one
table more: of the files beside the store, so that other machines can make the folder again.
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

from esm_host.arguments import argument
from esm_host.errors import BusyError, DatasetError, RunExistsError, UsageError
from esm_protos.text import install

STORE_VARIABLE = "ESM_STORE"
"""The environment's variable with the URL of a shared store."""
ID_FACT = "id"
"""What tells a campaign of a shared store from another that had its name."""

_WANTED = "give postgresql://USER@HOST/DATABASE"
_NAME = re.compile(r"(?!pg_|public$|information_schema$)[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LOCKS = 0x65736D  # "esm": the class of our advisory locks
_CONNECTION = {
    "connect_timeout": "10",
    # A server that vanished is noticed within a minute.
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
    """The database of one campaign's store.

    Attributes:
        engine: connects to it; what is closed connects again when it is used.
        schema: that the tables are in; None where there is only one.
        location: what messages call the store.
        campaign: what they call the campaign.
        facts: that a store there has beside its schema's version.
    """

    engine: sa.Engine
    schema: str | None = None
    location: str
    campaign: str
    facts: Mapping[str, str]

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is anything that may be a store."""

    @abstractmethod
    def making(self) -> AbstractContextManager[sa.Connection]:
        """A transaction in which the store's tables are made."""

    @contextmanager
    def migrating(self) -> Iterator[sa.Connection]:
        """A transaction in which an older store's tables are brought up to date."""
        with self.engine.begin() as connection:
            yield connection

    @abstractmethod
    def check(self) -> None:
        """Raises DatasetError where it is damaged."""

    @abstractmethod
    def unreadable(self, reason: object) -> DatasetError:
        """What an error while reading comes to: one line with its cure."""

    @abstractmethod
    def unwritable(self, error: DBAPIError) -> DatasetError:
        """Likewise while writing."""

    @abstractmethod
    def close(self) -> None:
        """Ends its connections."""


class SqliteFile(Database):
    """A file of its own. One that may not be written, or whose folder may not, is read."""

    def __init__(self, path: Path) -> None:
        # A path is no part of a URL: it may have a "?" or a "%".
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
        """Connect; a connection may be used in any thread, by one at a time."""
        path = self._path
        if self._may_be_written():
            return sqlite3.connect(path, check_same_thread=False)
        # What is in the log alone is read by writing an index beside it.
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
            # Survives kill -9 at any point, and a power cut up to the last transaction.
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        with self.engine.begin() as connection:
            yield connection

    def check(self) -> None:
        with self.engine.connect() as connection:
            said = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if said != "ok":
            raise self.unreadable(said)

    def unreadable(self, reason: object) -> DatasetError:
        return DatasetError(
            f"{self.location} is not a usable store ({detail_of(reason)}): restore it from a copy, "
            f"or start afresh in another {argument('run')} folder"
        )

    def unwritable(self, error: DBAPIError) -> DatasetError:
        return DatasetError(
            f"{self.location} cannot be written ({detail_of(error)}): make room or mend its "
            "permissions, then go on with --resume"
        )

    def close(self) -> None:
        self.engine.dispose()
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None


class PostgresSchema(Database):
    """A schema of a PostgreSQL database, named after its campaign.

    Args:
        url: of the database; a password in it serves for as long as the program runs.
        name: of the campaign.
        campaign_id: that the campaign must have; None takes any.

    Raises:
        UsageError: the URL is not one, or the name cannot be a schema's.
        DatasetError: the driver is missing.
    """

    def __init__(self, url: str, name: str, campaign_id: str | None = None) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"'{name}' cannot be the name of a campaign in a shared store: give a "
                f"{argument('run')} whose "
                "last part is of letters, digits, '.', '_' and '-', 63 at most"
            )
        self.url = without_password(url)
        self.name = self.schema = name
        self.location = f"campaign '{name}' of {self.url}"
        self.campaign = self.location
        self.facts = {} if campaign_id is None else {ID_FACT: campaign_id}
        # Of one connection, which holds the lock: losing it is noticed by what would write.
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

    def check(self) -> None:
        """A server looks after its files itself."""

    def check_new(self) -> None:
        """Raises unless a campaign of this name can begin.

        Raises:
            RunExistsError: there is one already.
            DatasetError: the database cannot be reached, or forbids it.
        """
        with self._reading() as connection:
            inspector = sa.inspect(connection)
            if inspector.has_schema(self.name):
                raise RunExistsError(
                    f"{self.url} has a campaign '{self.name}' already: give another --run, or go "
                    f"on with that one, esm-host campaigns attach {self.name}"
                )
            permitted = sa.func.has_database_privilege(sa.func.current_database(), "CREATE")
            if not connection.scalar(sa.select(permitted)):
                raise DatasetError(
                    f"{self.url} lets you begin no campaign: its owner permits it by GRANT CREATE "
                    "ON DATABASE, as docs/team.md says"
                )

    def unreadable(self, reason: object) -> DatasetError:
        return self._error("read", reason)

    def unwritable(self, error: DBAPIError) -> DatasetError:
        return self._error("written", error)

    def close(self) -> None:
        if not self._alone:
            self.engine.dispose()

    # The files beside the store

    def keep_files(self, files: Mapping[str, bytes]) -> None:
        """Keeps files by name, in place of all that it had kept."""
        try:
            with self.engine.begin() as connection:
                connection.execute(_files.delete())
                if files:
                    rows = [{"name": name, "data": data} for name, data in files.items()]
                    connection.execute(_files.insert(), rows)
        except DBAPIError as error:
            raise self.unwritable(error) from error

    def kept_files(self) -> dict[str, bytes]:
        """What was kept, by name."""
        with self._reading() as connection:
            return {row.name: row.data for row in connection.execute(sa.select(_files))}

    # One host at a time

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other hosts from running the campaign, until the end of this or of the program.

        Raises:
            BusyError: one of them runs it.
        """
        self.engine.dispose()  # the next connection takes the lock
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
            # The lock of a host that vanished is free within a minute.
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
        # Not a statement failed, but the connection.
        if isinstance(reason, DBAPIError) and (
            reason.connection_invalidated or reason.statement is None
        ):
            error = _unreachable(self.url, reason)
        else:
            error = DatasetError(
                f"{self.location} cannot be {done} ({detail_of(reason)}): its database may be "
                "full, its tables damaged or not yours; docs/team.md tells what is needed"
            )
        return DatasetError(f"{error}; then go on with --resume") if self._alone else error


# All campaigns of a database

_HOLDERS = f"""
SELECT objid::bigint, application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND classid = {_LOCKS} AND objsubid = 2 AND granted
AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
"""Who runs campaigns: of each the lock's key, and what the program calls itself."""

_CAMPAIGNS = """
SELECT nspname FROM pg_namespace n
WHERE 3 = (SELECT count(*) FROM pg_class c WHERE c.relnamespace = n.oid
           AND relname IN ('facts', 'plan', 'files') AND relkind = 'r')
ORDER BY nspname
"""


def campaigns(url: str) -> dict[str, bool]:
    """Names of the campaigns in a shared store, and whether a host is running each.

    Raises:
        UsageError: the URL is not one.
        DatasetError: the database cannot be reached.
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
    """Of a campaign's lock, as the server lists it."""
    return zlib.crc32(name.encode())


def without_password(url: str) -> str:
    """A database's URL as it may be shown and written; a password in it is remembered for as long
    as the program runs.

    Raises:
        UsageError: it is none of a PostgreSQL database.
    """
    try:
        parts = sa.make_url(url)
    except (ArgumentError, ValueError):
        raise UsageError(f"{argument('store')} is no URL: {_WANTED}") from None
    if parts.drivername.partition("+")[0] not in ("postgresql", "postgres") or not parts.database:
        raise UsageError(f"{argument('store')} is no URL of a PostgreSQL database: {_WANTED}")
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
"""That came with URLs, by these without them."""


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
    """A database does not answer, or does not let us in: one line with the cure."""
    # Of the ways that were tried, and their addresses, only why the last one failed.
    said = [line for line in str(error.orig).splitlines() if "failed: " in line]
    detail = said[-1].rpartition("failed: ")[2] if said else detail_of(error)
    detail = detail.removeprefix("FATAL:").strip()
    cures = {
        "password": "put the password into ~/.pgpass or PGPASSWORD, and the user into the URL",
        "permission denied": "its owner permits it by GRANT CONNECT, as docs/team.md says",
        "pg_hba": "its pg_hba.conf must let you in, as docs/team.md says",
        "role": "name another user, postgresql://USER@HOST/DATABASE, or create that one",
        "does not exist": "create it with createdb, or correct the URL",
    }
    cure = next((cure for word, cure in cures.items() if word in detail), None)
    return DatasetError(
        f"{url} cannot be used ({detail}): {cure or 'see that its server runs and can be reached'}"
    )


def detail_of(reason: object) -> str:
    """The first line of what a database says."""
    lines = str(getattr(reason, "orig", reason)).strip().splitlines()
    return lines[0].removesuffix(":") if lines else "no reason given"


def _check_foreign_keys(connection: Any, _: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
