"""TLS to the broker: what is checked, what may be left out by name, and what is said of files that cannot be used."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from bridge.broker import _tls_context, _words
from bridge.config import TlsSettings
from bridge.errors import OperatorError


def test_the_brokers_name_and_certificate_are_checked_unless_it_is_asked_not_to() -> None:
    checked, unchecked = _tls_context(TlsSettings()), _tls_context(TlsSettings(insecure=True))
    assert (checked.check_hostname, checked.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert (unchecked.check_hostname, unchecked.verify_mode) == (False, ssl.CERT_NONE)


@pytest.mark.parametrize("file", ["/nowhere/ca.pem", __file__])
def test_files_that_cannot_be_used_are_the_operators_to_change(file: str) -> None:
    with pytest.raises(OperatorError, match=r"mqtt\.tls cannot be used: "):
        _tls_context(TlsSettings(ca=Path(file)))


def test_every_error_has_words() -> None:
    refused = ssl.SSLCertVerificationError()
    refused.verify_message = "certificate has expired"
    assert _words(refused) == "the broker's certificate is not accepted: certificate has expired"
    assert _words(OSError(111, "Connection refused")) == "Connection refused"
    assert _words(ValueError("odd")) == "odd"
    assert _words(TimeoutError()) == "TimeoutError"
