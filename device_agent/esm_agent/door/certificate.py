"""The agent's self-signed certificate, which workstations identify by its fingerprint."""

from __future__ import annotations

import hashlib
import ssl
from datetime import UTC, datetime
from pathlib import Path

from esm_agent.door.tokens import make_private_folder, write_private
from esm_agent.errors import AccessError
from esm_protos.text import install

SERVER_NAME = "esm-agent"
"""Subject of every agent's own certificate. Agents differ by fingerprint, and addresses change."""

# A workstation pins the certificate itself, so dates would add no security. They would lock out a
# device whose clock was wrong when it was paired, or is wrong now.
_VALID_FROM = datetime(1970, 1, 1, tzinfo=UTC)
_VALID_TO = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # RFC 5280, 4.1.2.5: no expiry
_BEGIN = b"-----BEGIN CERTIFICATE-----"


def own_certificate(folder: Path) -> tuple[bytes, bytes] | None:
    """Return certificate and key in PEM; None before the first pairing.

    Raises:
        AccessError: the file cannot be read.
    """
    path = _path(folder)
    try:
        key, begin, certificate = path.read_bytes().partition(_BEGIN)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AccessError(
            f"cannot read {path} ({error.strerror}): make it a file of the agent's own user"
        ) from error
    return begin + certificate, key


def keep_certificate(folder: Path, certificate: bytes, key: bytes) -> None:
    """Store the agent's certificate and key, in place of older ones.

    Raises:
        AccessError: the file cannot be written.
    """
    make_private_folder(folder)
    write_private(_path(folder), key + certificate)  # one file, so key and certificate always match


def make_certificate() -> tuple[bytes, bytes]:
    """Create a self-signed certificate on the curve P-256, and its key, in PEM.

    Raises:
        AccessError: the package cryptography is not installed.
    """
    _require_cryptography()
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, SERVER_NAME)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_VALID_FROM)
        .not_valid_after(_VALID_TO)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def fingerprint(certificate: bytes) -> str:
    """Return the fingerprint of a certificate in PEM: ``sha256:`` and 64 digits."""
    der = ssl.PEM_cert_to_DER_cert(certificate.decode("ascii"))
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def dates(certificate: bytes) -> tuple[datetime, datetime]:
    """Return the first and the last date on which a certificate in PEM is valid.

    Raises:
        AccessError: it is not a certificate.
    """
    _require_cryptography()
    from cryptography import x509

    try:
        parsed = x509.load_pem_x509_certificate(certificate)
    except ValueError as error:
        raise AccessError(
            "the agent's certificate is not in PEM: run `esm-agent pair --renew-certificate`"
        ) from error
    return parsed.not_valid_before_utc, parsed.not_valid_after_utc


def out_of_dates(certificate: bytes) -> str | None:
    """Return why a certificate is not valid by this device's clock; None if it is valid.

    Raises:
        AccessError: it is not a certificate.
    """
    begin, end = dates(certificate)
    now = datetime.now(UTC)
    if begin <= now <= end:
        return None
    return (
        f"it is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}, and this device's clock says "
        f"{now:%Y-%m-%d %H:%M} UTC"
    )


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError as error:
        raise AccessError(f"TLS needs the package cryptography: {install('agent')}") from error


def _path(folder: Path) -> Path:
    return folder / "server.pem"
