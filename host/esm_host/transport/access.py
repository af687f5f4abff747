"""Authentication between this host and agents: channels, and TLS checks outside gRPC.

A token is only sent as a call credential of a TLS channel. gRPC refuses to send it over plain
text.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
import ssl
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from esm_host.errors import AuthError, UnreachableError, UsageError
from esm_host.transport.route import channel_options, connect, is_this_machine, unreachable_proxy
from esm_host.transport.validity import out_of_dates
from esm_protos.addresses import join, split

PINNED_NAME = "esm-agent"
"""Name in agents' own certificates; they are pinned, so the name identifies nothing."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{8,512}", re.ASCII)  # RFC 6750's alphabet
_FINGERPRINT = re.compile(r"sha256:(?P<digits>[0-9a-f]{64})")
_PROBE_S = 3.0
_AGAIN_S = 0.5
_DATES = {9, 10}  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and ..._HAS_EXPIRED
_NOT_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"}


@dataclass(frozen=True)
class Access:
    """Credentials for an agent: plain text by default, TLS with ``roots``.

    Attributes:
        roots: Accepted certificates in PEM; None for plain text.
        token: Token that is sent to the agent; None for none.
        certificate: Client certificate in PEM; None for none.
        key: Key of the client certificate in PEM; None for none.
        server_name: Name in the agent's certificate; None for its address.
    """

    roots: bytes | None = None
    token: str | None = field(default=None, repr=False)
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    server_name: str | None = None

    def channel(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """Return a channel that authenticates both sides; it does not connect yet.

        Raises:
            UsageError: the address is malformed.
        """
        host, port = split_address(address)
        target = join(host, port)
        options = (*options, *channel_options((host, port)))
        if self.roots is None:
            return grpc.insecure_channel(target, options=options)
        credentials = grpc.ssl_channel_credentials(self.roots, self.key, self.certificate)
        if self.token is not None:
            credentials = grpc.composite_channel_credentials(
                credentials, grpc.access_token_call_credentials(self.token)
            )
        if self.server_name is not None:
            options = (*options, ("grpc.ssl_target_name_override", self.server_name))
        return grpc.secure_channel(target, credentials, options=options)


PLAIN = Access()


def pinned(certificate: bytes, token: str) -> Access:
    """Return the access to the agent with this very certificate, by token."""
    return Access(roots=certificate, token=token, server_name=PINNED_NAME)


def mutual(ca: Path, certificate: Path, key: Path) -> Access:
    """Return the access by mutual TLS.

    Args:
        ca: Certificate of the authority that issued the agent's certificate, PEM.
        certificate: Certificate of this host, PEM.
        key: Key of this host's certificate, PEM, without a password.

    Raises:
        UsageError: a file cannot be read or is invalid.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca)
        context.load_cert_chain(certificate, key, password=lambda: "")
        return Access(ca.read_bytes(), None, certificate.read_bytes(), key.read_bytes())
    except ssl.SSLError as error:
        raise UsageError(
            f"{ca}, {certificate} or {key} is unusable ({error.reason or error}): give the "
            "authority, a certificate and its key without a password, all in PEM"
        ) from error
    except OSError as error:
        raise UsageError(f"{ca}, {certificate} or {key}: {error.strerror}") from error


def split_address(address: str) -> tuple[str, int]:
    """Return host (IPv6 without brackets) and port of ``host:port``.

    Raises:
        UsageError: the address is malformed.
    """
    try:
        return split(address)
    except ValueError as error:
        raise UsageError(str(error)) from None


def is_loopback(address: str) -> bool:
    """Return whether an address leads to this machine only.

    Raises:
        UsageError: the address is malformed.
    """
    host, _ = split_address(address)
    return is_this_machine(host)


def check_token(token: str) -> str:
    """Return a token if it is well-formed; the error never repeats the token.

    Raises:
        UsageError: the token is malformed.
    """
    if not _TOKEN.fullmatch(token):
        raise UsageError("malformed token: paste the whole line that `esm-agent pair` printed")
    return token


def fetch_certificate(address: str, fingerprint: str) -> bytes:
    """Return the agent's certificate in PEM if it has this fingerprint.

    Raises:
        UsageError: the fingerprint or the address is malformed.
        UnreachableError: no agent answers.
        AuthError: the agent does not speak TLS, or has another certificate.
    """
    match = _FINGERPRINT.fullmatch(fingerprint.strip().lower())
    if match is None:
        raise UsageError(
            f"'{fingerprint}' is not a fingerprint: give sha256: and 64 hexadecimal digits"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # verified by the fingerprint below
    context.set_alpn_protocols(["h2"])
    try:
        with (
            connect(split_address(address), _PROBE_S) as plain,
            context.wrap_socket(plain, server_hostname=PINNED_NAME) as tls,
        ):
            der = tls.getpeercert(binary_form=True) or b""
    except ssl.SSLError as error:
        if isinstance(error, ssl.SSLEOFError):  # a tunnel without an agent at its end
            raise no_agent(address) from error
        raise AuthError(
            f"{address} does not speak TLS: start the agent with `esm-agent serve --tls` or --host"
        ) from error
    except OSError as error:
        raise no_agent(address) from error
    found = hashlib.sha256(der).hexdigest()
    if not hmac.compare_digest(found, match["digits"]):
        raise AuthError(
            f"{address} has another certificate, sha256:{found}: if it is your device, run "
            "`esm-agent pair` there and paste its new line; otherwise another machine answers"
        )
    return ssl.DER_cert_to_PEM_cert(der).encode()


def no_agent(address: str, name: str | None = None) -> UnreachableError:
    """Return the error for an address where no agent answers.

    Args:
        address: The address, ``host:port``.
        name: Name of the device; None if it has none.
    """
    who = address if name in (None, address) else f"{address} ({name})"
    return UnreachableError(
        unreachable_proxy(split_address(address))
        or f"no agent answers at {who}: check the address and that `esm-agent serve` runs there"
    )


class Finding(enum.Enum):
    """Result of a TLS handshake outside gRPC with an agent that gRPC cannot reach."""

    NOTHING = "no TLS error"
    NO_TLS = "plain text"
    WANTS_TLS = "TLS"
    OTHER_CERTIFICATE = "not the certificate that is pinned"
    WRONG_DATES = "the dates of the agent's certificate"
    WRONG_CERTIFICATE = "the agent's certificate"
    REFUSED = "this host's certificate"


def probe(address: str, access: Access) -> tuple[Finding, str]:
    """Find out why a channel fails; gRPC reports UNAVAILABLE for every reason.

    Returns:
        Finding, and OpenSSL's message.
    """
    finding, words = _probe(address, access)
    if finding is Finding.REFUSED:
        # A stopping agent looks the same, but only once.
        time.sleep(_AGAIN_S)
        return _probe(address, access)
    return finding, words


def _probe(address: str, access: Access) -> tuple[Finding, str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    host, port = split_address(address)
    name = access.server_name or host.partition("%")[0]
    if access.roots is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=access.roots.decode("ascii", "ignore"))
        if access.certificate is not None and access.key is not None:
            _load_chain(context, access.certificate, access.key)
    try:
        plain = connect((host, port), _PROBE_S)
    except OSError:
        return Finding.NOTHING, ""
    with plain:
        try:
            with context.wrap_socket(plain, server_hostname=name) as tls:
                if access.roots is None:
                    return Finding.WANTS_TLS, ""
                # With TLS 1.3 a server checks the client's certificate after the handshake. A
                # gRPC server that accepts it sends first; otherwise it closes the connection.
                if not tls.recv(1) and access.certificate is not None:
                    return Finding.REFUSED, "it closes the connection"
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in _DATES:
                return Finding.WRONG_DATES, error.verify_message
            other = access.certificate is None
            finding = Finding.OTHER_CERTIFICATE if other else Finding.WRONG_CERTIFICATE
            return finding, error.verify_message
        except ssl.SSLError as error:
            if access.roots is not None and error.reason in _NOT_TLS:
                return Finding.NO_TLS, ""
            # Otherwise the connection ended: a stopping agent, or a tunnel without an agent.
            if "ALERT" in (error.reason or "") and access.certificate is not None:
                return Finding.REFUSED, error.reason
        except OSError:
            pass
    return Finding.NOTHING, ""


def _load_chain(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Load a certificate chain from memory, through a short-lived private file.

    The ssl module can load one only from a file.
    """
    with tempfile.NamedTemporaryFile() as file:  # mode 0600
        file.write(key + b"\n" + certificate)
        file.flush()
        context.load_cert_chain(file.name)


def tls_error(address: str, name: str, access: Access) -> AuthError | None:
    """Return the TLS error behind a failed channel; None if TLS is not the cause."""
    finding, words = probe(address, access)
    who = name if name == address else f"{name} ({address})"
    cure = (
        "have your authority issue another"
        if access.certificate
        else "run `esm-agent pair --renew-certificate` on the device and paste its line, "
        "with --force"
    )
    refused = f"{who} does not accept this host's certificate"
    if reason := out_of_dates(access.certificate or b""):
        refused += f": {reason}: set the clock if it is wrong, otherwise {cure}"
    else:
        refused += f" ({words}): have the agent's --client-ca issue one, or set the device's clock "
        refused += "if `date` there is wrong"
    dated = (access.token and out_of_dates(access.roots or b"")) or _clock()
    texts = {
        Finding.OTHER_CERTIFICATE: f"{who} has another certificate than the pinned one: "
        "if it was renewed, run `esm-agent pair` on the device and paste its line, with --force; "
        "otherwise another machine answers",
        Finding.WRONG_DATES: f"the certificate of {who} is not valid ({words}): {dated}: "
        f"set the clock if it is wrong, otherwise {cure}",
        Finding.WRONG_CERTIFICATE: f"the certificate of {who} is not valid ({words}): {cure}",
        Finding.REFUSED: refused,
        Finding.NO_TLS: f"{who} now speaks plain text, so nothing was sent: start it "
        "with `esm-agent serve --tls` or --host",
        Finding.WANTS_TLS: f"{who} requires TLS and a token: run `esm-agent pair` on the "
        "device and paste the line that it prints",
    }
    return AuthError(texts[finding]) if finding in texts else None


def _clock() -> str:
    return f"this workstation's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
