"""The dates of an X.509 certificate, read from its DER: also of one that is expired or not trusted.

The standard library tells the dates only of a certificate that it accepts, which is of no use here. Pure; it trusts
nothing that it reads: whatever is no certificate is a ValueError. Whether a certificate is accepted is not judged here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

_SEQUENCE, _VERSION = 0x30, 0xA0  # the version stands in a context tag [0], and may be left out
_LONG_FORM = 0x80
_BEFORE_VALIDITY = 3  # serial number, signature algorithm, issuer (RFC 5280, section 4.1)


class Validity(NamedTuple):
    """From when until when a certificate counts."""

    since: datetime
    until: datetime


class _Element(NamedTuple):
    tag: int
    start: int
    end: int


def validity(der: bytes) -> Validity:
    """Read the dates; ValueError if this is no certificate."""
    try:
        certificate = _expect(der, 0, _SEQUENCE)
        body = _expect(der, certificate.start, _SEQUENCE)
        first = _element(der, body.start)
        at = first.end if first.tag == _VERSION else body.start
        for _ in range(_BEFORE_VALIDITY):
            at = _element(der, at).end
        dates = _expect(der, at, _SEQUENCE)
        since = _element(der, dates.start)
        return Validity(_time(der, since), _time(der, _element(der, since.end)))
    except IndexError:
        raise ValueError("the certificate ends too early") from None


def _expect(der: bytes, at: int, tag: int) -> _Element:
    element = _element(der, at)
    if element.tag != tag:
        raise ValueError("this is no certificate")
    return element


def _element(der: bytes, at: int) -> _Element:
    tag, length, start = der[at], der[at + 1], at + 2
    if length & _LONG_FORM:
        octets = length & ~_LONG_FORM
        length, start = int.from_bytes(der[start : start + octets]), start + octets
    return _Element(tag, start, start + length)


def _time(der: bytes, element: _Element) -> datetime:
    text = der[element.start : element.end].decode("ascii", "replace")
    match element.tag:
        case 0x17:  # UTCTime: two digits of the year, 50 and above are 19.. (RFC 5280, section 4.1.2.5.1)
            century = "19" if text[:2] >= "50" else "20"
            text = century + text
        case 0x18:  # GeneralizedTime
            pass
        case _:
            raise ValueError("the certificate has no dates")
    try:
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"the certificate has dates that are none: {text!r}") from None
