"""The supervisor: the service manager that started us, told how we are by sd_notify(3).

Beside the way of a message. The protocol is one datagram of NAME=VALUE lines to a Unix socket, so it is spoken here:
the packages for it do little more, read the environment themselves, and block when the receiver is slow. Never
blocks the event loop and never fails the bridge: what cannot be sent is left out, the next beat says it again.
Without a supervisor nothing is sent.
"""

from __future__ import annotations

import contextlib
import socket
import time


class Supervisor:
    """Tells the service manager at `address` (a path, or `@name` for an abstract socket; None: there is none)."""

    def __init__(self, address: str | None) -> None:
        # Linux's abstract sockets begin with a NUL byte, which a variable of the environment cannot hold.
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def ready(self) -> None:
        """Say that messages can be stored."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """Say that the configuration is read again; `ready` follows."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the orderly stop has begun."""
        self._tell("STOPPING=1")

    def beat(self, status: str, *, alive: bool) -> None:
        """Say in one line how we are; `alive` feeds the watchdog."""
        line = f"STATUS={' '.join(status.split())}"
        self._tell(line, *(["WATCHDOG=1"] if alive else []))

    def close(self) -> None:
        """Say no more."""
        self._socket.close()

    def _tell(self, *lines: str) -> None:
        if self._address:
            with contextlib.suppress(OSError):  # full, gone, or of a kind (vsock:) that is no Unix socket
                self._socket.sendto("\n".join(lines).encode(), self._address)
