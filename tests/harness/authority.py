"""A private certificate authority, and servers that show certificates that are right or wrong on purpose."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme


class Authority:
    """`file` is what a client trusts."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.file))

    def server_context(self, name: str = "127.0.0.1", since_days: int = -1, until_days: int = 9) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.show(context, name, since_days, until_days)
        return context

    def show(self, context: ssl.SSLContext, name: str = "127.0.0.1", since_days: int = -1, until_days: int = 9) -> None:
        """Show this certificate from the next handshake on."""
        since, until = (datetime.now(UTC) + timedelta(days) for days in (since_days, until_days))
        self.ca.issue_cert(name, not_before=since, not_after=until).configure_cert(context)
