"""Authentication of calls: which clients may call the agent, and their names.

The agent uses one of three doors: plain text, for this machine or a trusted network; TLS with
tokens; or TLS with client certificates of the users' own authority.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import ssl
import threading
import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote

import grpc

from esm_agent.door.certificate import dates, out_of_dates, own_certificate
from esm_agent.door.tokens import TokenFile, config_folder, hash_of
from esm_agent.errors import AccessError
from esm_agent.operation.logs import limited_event
from esm_agent.operation.metrics import Metrics
from esm_protos.text import foreign

log = logging.getLogger(__name__)

LISTED = frozenset(
    {
        "/esm.v1.Profiler/GetDeviceInfo",
        "/esm.v1.Profiler/Lease",
        "/esm.v1.Profiler/Release",
        "/esm.v1.Profiler/Offer",
        "/esm.v1.Profiler/Upload",
        "/esm.v1.Profiler/MeasureBlock",
        "/esm.v1.Profiler/FinishBlock",
        "/esm.v1.Profiler/Diagnose",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    }
)
"""Methods that an authenticated client may call; all others are refused."""

PAIR = (
    "this agent needs a valid token: run `esm-agent pair` on the device, then the command that it "
    "prints on the workstation"
)
_EXPOSED = (
    "a token was sent over plain text, where others can read it: revoke it "
    "(`esm-agent tokens revoke NAME`), run `esm-agent pair` again and serve with --tls"
)

_SOON = timedelta(days=30)
_THREADS = 8  # threads for refusals, more than the calls that the brake delays at a time

Metadata = Sequence[tuple[str, str | bytes]]


class Brake:
    """Growing delay of the calls from an address whose authentication fails repeatedly.

    Args:
        longest_s: Longest delay of a call, seconds.
        most_delayed: Number of calls, from all addresses, that are delayed at a time. Each holds a
            thread for refusals. Further calls are refused at once.
        clock: Monotonic clock, seconds.
    """

    _FIRST_S = 0.1
    _FORGET_S = 300.0
    _MOST_PEERS = 1024

    def __init__(
        self,
        longest_s: float = 4.0,
        most_delayed: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._longest_s = longest_s
        self._most_delayed = most_delayed
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._delayed = 0

    @contextlib.contextmanager
    def failed(self, address: str) -> Iterator[float]:
        """Count a failure; yield the delay of the call, seconds, to wait inside the context."""
        with self._lock:
            delay_s = self._count(address)
            if self._delayed == self._most_delayed:
                delay_s = 0.0
            held = delay_s > 0
            self._delayed += held
        try:
            yield delay_s
        finally:
            with self._lock:
                self._delayed -= held

    def _count(self, address: str) -> float:
        now = self._clock()
        before, last = self._failures.pop(address, (0, now))
        failures = before + 1 if now - last < self._FORGET_S else 1
        self._failures[address] = failures, now  # the most recent entry is last
        if len(self._failures) > self._MOST_PEERS:
            self._failures.popitem(last=False)
        if failures == 1:
            return 0.0  # a single failure is probably a mistake
        # A bounded exponent: 2.0**1024 overflows.
        return min(self._FIRST_S * 2.0 ** min(failures - 2, 20), self._longest_s)


class Door(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Interceptor that accepts or refuses a call by its metadata, before its messages are read.

    Attributes:
        credentials: Credentials of the port; None for plain text.
        means: Description of the method, for the log.
        metrics: Counters of refused calls.
    """

    credentials: grpc.ServerCredentials | None = None
    means: str

    def __init__(self, brake: Brake | None = None) -> None:
        self._brake = brake or Brake()
        # A pool of their own, so that refused calls never delay accepted ones.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="esm-door")
        self.metrics = Metrics()

    @abstractmethod
    def client_of(self, context: grpc.ServicerContext) -> str:
        """Return the client's name; abort the call if its token has been revoked."""

    def owner_of(self, context: grpc.ServicerContext) -> str:
        """Return the owner of the files that a caller may use; abort as :meth:`client_of`."""
        return self.client_of(context)

    def caller_of(self, context: grpc.ServicerContext) -> str:
        """Return the name under which a caller's calls are counted, without aborting."""
        return context.peer()  # type: ignore[no-any-return]

    def has_access(self, client: str) -> bool:
        """Return whether a client still has access."""
        return True

    @abstractmethod
    def refusal(self, metadata: Metadata) -> str | None:
        """Return why a call with this metadata is refused; None if it is accepted."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        # An exception here refuses the call too.
        if (reason := self.refusal(handler_call_details.invocation_metadata or ())) is not None:
            return self._refused(lambda context: self._turn_away(reason, context))
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method in LISTED:
            return handler  # None: gRPC answers UNIMPLEMENTED to another version's method
        text = f"{handler_call_details.method} may not be called"
        return self._refused(
            lambda context: _abort(context, grpc.StatusCode.PERMISSION_DENIED, text)
        )

    def _turn_away(self, reason: str, context: grpc.ServicerContext) -> NoReturn:
        gone = threading.Event()
        address = _address(context.peer())
        with self._brake.failed(address) as delay_s:
            # The wait ends early if the client disconnects or the agent stops.
            if delay_s and context.add_callback(gone.set):
                gone.wait(delay_s)
        limited_event(log, logging.WARNING, "turned away", peer=address, reason=reason)
        self.metrics.refused(grpc.StatusCode.UNAUTHENTICATED.name)
        _abort(context, grpc.StatusCode.UNAUTHENTICATED, reason)

    def _refused(self, abort: Callable[[grpc.ServicerContext], NoReturn]) -> grpc.RpcMethodHandler:
        """Return a handler that aborts a call of any kind.

        It streams in both directions, so no request is read first.
        """

        def refuse(requests: Iterator[object], context: grpc.ServicerContext) -> Iterator[object]:
            abort(context)

        refuse.experimental_thread_pool = self._threads  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(refuse)


class OpenDoor(Door):
    """Plain text without authentication; all clients have the name ``anyone``."""

    means = "plain text, no token"

    def client_of(self, context: grpc.ServicerContext) -> str:
        return "anyone"

    def refusal(self, metadata: Metadata) -> str | None:
        return _EXPOSED if any(key == "authorization" for key, _ in metadata) else None


class TokenDoor(Door):
    """TLS with tokens; the name of a token is the client's name."""

    means = "TLS, tokens"

    def __init__(
        self, certificate: bytes, key: bytes, tokens: TokenFile, brake: Brake | None = None
    ) -> None:
        super().__init__(brake)
        self._tokens = tokens
        self.credentials = grpc.ssl_server_credentials([(key, certificate)])

    def client_of(self, context: grpc.ServicerContext) -> str:
        name = self._name_of(context.invocation_metadata())
        if name is None:  # revoked after the call began
            _abort(context, grpc.StatusCode.UNAUTHENTICATED, PAIR)
        return name

    def owner_of(self, context: grpc.ServicerContext) -> str:
        """Return the owner as in :meth:`Door.owner_of`, by the token; a name may be used again."""
        name = self.client_of(context)
        return f"{name} {hash_of(_token(context.invocation_metadata()))}"

    def caller_of(self, context: grpc.ServicerContext) -> str:
        return self._name_of(context.invocation_metadata()) or super().caller_of(context)

    def has_access(self, client: str) -> bool:
        return self._tokens.has_name(client)

    def refusal(self, metadata: Metadata) -> str | None:
        return PAIR if self._name_of(metadata) is None else None

    def _name_of(self, metadata: Metadata) -> str | None:
        token = _token(metadata)
        return self._tokens.name_of(token) if token else None


class CertificateDoor(Door):
    """Mutual TLS with certificates of an authority, whose common name is the client's name."""

    means = "mutual TLS"

    def __init__(
        self, certificate: bytes, key: bytes, client_ca: bytes, brake: Brake | None = None
    ) -> None:
        super().__init__(brake)
        self.credentials = grpc.ssl_server_credentials(
            [(key, certificate)], root_certificates=client_ca, require_client_auth=True
        )

    def caller_of(self, context: grpc.ServicerContext) -> str:
        return self.client_of(context)

    def client_of(self, context: grpc.ServicerContext) -> str:
        facts = context.auth_context()
        names: Sequence[bytes] = facts.get("x509_common_name", ())
        if names and names[0]:
            return foreign(names[0].decode("utf-8", "replace"))
        pem: Sequence[bytes] = facts.get("x509_pem_cert", ())
        if not pem:  # cannot happen with require_client_auth
            _abort(context, grpc.StatusCode.UNAUTHENTICATED, "a client certificate is required")
        return f"certificate {hashlib.sha256(pem[0]).hexdigest()[:16]}"

    def refusal(self, metadata: Metadata) -> str | None:
        return None


def choose_door(
    config: Path | None,
    beyond_loopback: bool,
    tls: bool = False,
    insecure: bool = False,
    certificate: Path | None = None,
    key: Path | None = None,
    client_ca: Path | None = None,
) -> Door:
    """Return the door that the options of ``esm-agent serve`` choose.

    Args:
        config: Folder of tokens and certificate; None for the user's.
        beyond_loopback: Whether the agent listens on other addresses than loopback.
        tls: Whether to use TLS on loopback too.
        insecure: Whether to use plain text beyond loopback.
        certificate: The agent's certificate for mutual TLS.
        key: Key of ``certificate``.
        client_ca: Certificate of the authority of the clients.

    Raises:
        AccessError: the options contradict each other, there is no token yet, or a certificate is
            invalid.
    """
    own = (certificate, key, client_ca)
    if insecure and (tls or any(own)):
        raise AccessError("--insecure is plain text: leave it out, or the options for TLS")
    if any(own):
        if certificate is None or key is None or client_ca is None:
            raise AccessError("mutual TLS needs all of --certificate, --key and --client-ca")
        return _mutual(certificate, key, client_ca)
    if insecure or not (tls or beyond_loopback):
        return OpenDoor()
    folder = config_folder(config)
    pair = own_certificate(folder)
    if pair is None:
        raise AccessError(
            "there are no tokens yet: run `esm-agent pair` first (or --insecure, in a "
            "network that you trust)"
        )
    _warn_of_dates(pair[0], "run `esm-agent pair --renew-certificate`, and pair each workstation")
    if not TokenFile(folder).all():
        log.warning("there are no tokens yet: run `esm-agent pair`")
    return TokenDoor(*pair, TokenFile(folder))


def _mutual(certificate: Path, key: Path, client_ca: Path) -> Door:
    """Return the door for mutual TLS, after a check of the files.

    For invalid files gRPC only reports that it cannot bind the port.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password=lambda: "")
        context.load_verify_locations(client_ca)
        door = CertificateDoor(certificate.read_bytes(), key.read_bytes(), client_ca.read_bytes())
    except ssl.SSLError as error:
        raise AccessError(
            f"{certificate}, {key} or {client_ca} is invalid ({error.reason or error}): give a "
            "certificate, its key without a password, and the clients' authority, all in PEM"
        ) from error
    except OSError as error:
        raise AccessError(f"{certificate}, {key} or {client_ca}: {error.strerror}") from error
    _warn_of_dates(certificate.read_bytes(), "get a new one from your authority")
    return door


def _warn_of_dates(certificate: bytes, cure: str) -> None:
    """Log a warning if a certificate is out of date or expires soon.

    The agent still serves: workstations check the dates by their own clocks, and the device's
    clock may be wrong until the network sets it.
    """
    if reason := out_of_dates(certificate):
        log.warning(
            "workstations may refuse the agent's certificate: %s: set the clock if it is wrong, "
            "else %s",
            reason,
            cure,
        )
    elif (left := dates(certificate)[1] - datetime.now(UTC)) < _SOON:
        log.warning("the agent's certificate expires in %d days: %s", left.days, cure)


def _token(metadata: Metadata) -> str:
    """Return the token of a call; "" without one."""
    values = [value for key, value in metadata if key == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str):
        return ""
    scheme, _, token = values[0].partition(" ")
    return token if scheme.lower() == "bearer" else ""


def _address(peer: str) -> str:
    """Return a peer such as ``ipv4:192.168.1.5:40312`` without its port."""
    return unquote(peer).rpartition(":")[0] or peer


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, text: str) -> NoReturn:
    context.abort(code, text)
    raise AssertionError  # for type checkers: abort() always raises
