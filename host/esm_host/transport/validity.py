"""Validity dates of a certificate, read without a certificate library."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

_UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x17, 0x18, 0xA0


def out_of_dates(certificate: bytes) -> str | None:
    """Return why a certificate in PEM is not valid now; None if it is valid or unreadable."""
    try:
        begin, end = _dates(certificate)
    except (ValueError, IndexError):
        return None
    now = datetime.now(UTC)
    if begin <= now <= end:
        return None
    return (
        f"it is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}, and this workstation's clock says "
        f"{now:%Y-%m-%d %H:%M} UTC"
    )


def _dates(certificate: bytes) -> tuple[datetime, datetime]:
    """Return the validity dates of a certificate.

    RFC 5280, 4.1: Validity is the fifth field of TBSCertificate.
    """
    text = certificate.decode("ascii")
    text = text[text.index("-----BEGIN CERTIFICATE") :].partition("-----END CERTIFICATE-----")[0]
    der = ssl.PEM_cert_to_DER_cert(f"{text}-----END CERTIFICATE-----\n")
    (_, outer), *_ = _elements(der)
    (_, to_be_signed), *_ = _elements(outer)
    fields = [value for tag, value in _elements(to_be_signed) if tag != _VERSION]
    (begin, end) = (_time(tag, value) for tag, value in _elements(fields[3]))
    return begin, end


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """Return the tags and contents of consecutive DER elements."""
    found = []
    while der:
        size, start = der[1], 2
        if size >= 0x80:
            start += size - 0x80
            size = int.from_bytes(der[2:start])
        found.append((der[0], der[start : start + size]))
        der = der[start + size :]
    return found


def _time(tag: int, value: bytes) -> datetime:
    text = value.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("not a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
