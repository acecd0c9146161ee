"""A real Mosquitto under the shipped mosquitto.conf; only port, paths and anonymous access are changed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme

from tests.harness import free_port, wait_until

SHIPPED_FOLDER = Path(__file__).parents[2] / "mosquitto"
PLUGIN_PATTERNS = (
    "usr/lib/*/mosquitto_dynamic_security.so",  # Debian, Ubuntu
    "usr/lib*/mosquitto_dynamic_security.so",  # Alpine, Fedora
    "opt/homebrew/lib/mosquitto_dynamic_security.so",
)
# Its port is open before its main loop runs, and a SIGTERM in between is forgotten: only an answer says that it is up.
_CONNECT, _CONNACK = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00", b"\x20"
START_SECONDS = 10
STOP_SECONDS = 20


def program(name: str) -> str | None:
    """Return the path of a Mosquitto program; Debian keeps the broker in /usr/sbin, which a user's PATH lacks."""
    return shutil.which(
        name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    )


@dataclass(frozen=True, slots=True)
class Certificates:
    """A test CA with a server certificate for localhost and a client certificate."""

    ca: Path
    server: Path
    client: Path  # certificate and key in one file, as the server's

    @classmethod
    def make(cls, folder: Path) -> Self:
        authority = trustme.CA()
        made = cls(ca=folder / "ca.pem", server=folder / "server.pem", client=folder / "client.pem")
        authority.cert_pem.write_to_path(str(made.ca))
        authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(made.server))
        authority.issue_cert("bridge@example.com").private_key_and_cert_chain_pem.write_to_path(str(made.client))
        return made


@dataclass(slots=True)
class Mosquitto:
    """One broker and its persistence folder. `with` starts and stops it; kill, restart and stop as you like between.

    `users` (name → password) turns anonymous access off and the shipped ACL on. The other listeners are made
    when asked for: `unix_socket`, `websockets`, `tls` (`mutual_tls` asks clients for a certificate).
    """

    folder: Path
    port: int = field(default_factory=free_port)
    users: Mapping[str, str] | None = None
    acl: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)  # other values for keys that the shipped file has
    extra: tuple[str, ...] = ()
    refused_filters: tuple[str, ...] = ()  # SUBSCRIBE to exactly these fails, which an ACL file cannot do
    unix_socket: bool = False
    websockets: bool = False
    tls: bool = False
    mutual_tls: bool = False
    socket_path: Path = field(init=False)
    websockets_port: int = field(init=False, default=0)
    tls_port: int = field(init=False, default=0)
    certificates: Certificates | None = field(init=False, default=None)
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.socket_path = self.folder / "mqtt.sock"
        self.websockets_port = free_port() if self.websockets else 0
        if self.tls or self.mutual_tls:
            self.tls_port = free_port()
            self.certificates = Certificates.make(self.folder)

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        executable = program("mosquitto")
        assert executable, "mosquitto is not installed"
        assert not self.running
        conf = self.folder / "mosquitto.conf"
        conf.write_text(self._conf())
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [executable, "-c", str(conf)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._answers, START_SECONDS, "mosquitto answers")
        return self

    def stop(self) -> None:
        """SIGTERM: the broker saves everything and ends."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what is not saved is lost."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Stop in order and start again, on the same port and the same persistence folder."""
        self.stop()
        return self.start()

    def save(self) -> None:
        """Have the broker write its persistence file now."""
        before = self.saved_at_ns()
        os.kill(self.pid, signal.SIGUSR1)
        wait_until(lambda: self.saved_at_ns() != before, what="mosquitto.db written")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _log_path(self) -> Path:
        return self.folder / "mosquitto.log"

    def saved_at_ns(self) -> int:
        """When the broker last wrote its persistence file; 0 if it has not yet."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "mosquitto.db").stat().st_mtime_ns
        return 0

    def _answers(self) -> bool:
        assert self.running, f"mosquitto ended: {self.log}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as link:
            link.sendall(_CONNECT)
            return link.recv(1) == _CONNACK
        return False

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            assert self.running, f"mosquitto ended by itself, and whoever connected since was elsewhere: {self.log}"
            process, self._process = self._process, None
            process.send_signal(how)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()  # or it would fail another test, too
                process.wait()
                raise AssertionError(f"mosquitto did not end by {how.name}: {self.log}") from None

    def _conf(self) -> str:
        """The shipped file with our port and paths; each key that we change must stand in it exactly once."""
        lines = (SHIPPED_FOLDER / "mosquitto.conf").read_text().splitlines()
        for key, value in (self._changes() | dict(self.options)).items():
            places = [number for number, line in enumerate(lines) if line.split(" ")[0] == key]
            assert len(places) == 1, f"mosquitto.conf has {len(places)} lines for {key}"
            lines[places[0]] = value and f"{key} {value}"
        root = ["user root"] if os.geteuid() == 0 else []  # else it would not reach our folder as user mosquitto
        return "\n".join([*root, *lines, *self.extra, *self._refusals(), *self._other_listeners(), ""])

    def _changes(self) -> dict[str, str]:
        changes = {
            "listener": f"{self.port} 127.0.0.1",
            "persistence_location": f"{self.folder}/",
            "allow_anonymous": "true",
            "password_file": "",
            "acl_file": "",
        }
        if self.users is not None:
            changes |= {"allow_anonymous": "false", "password_file": str(self._password_file())}
        if self.users is not None or self.acl is not None:
            changes["acl_file"] = str(self._acl_file())
        return changes

    def _password_file(self) -> Path:
        path = self.folder / "passwd"
        path.write_text("")
        path.chmod(0o600)
        passwd = program("mosquitto_passwd")
        assert passwd, "mosquitto_passwd is not installed"
        for name, password in (self.users or {}).items():
            subprocess.run([passwd, "-b", str(path), name, password], check=True, capture_output=True)
        return path

    def _acl_file(self) -> Path:
        path = self.folder / "acl"
        path.write_text((SHIPPED_FOLDER / "acl").read_text() if self.acl is None else self.acl)
        path.chmod(0o600)
        return path

    def _refusals(self) -> list[str]:
        """Mosquitto answers a SUBSCRIBE with "not authorized" only under a plug-in: its own dynamic security."""
        if not self.refused_filters:
            return []
        plugin = next(path for pattern in PLUGIN_PATTERNS for path in Path("/").glob(pattern))
        acls = [{"acltype": "subscribeLiteral", "topic": name, "allow": False} for name in self.refused_filters]
        allowed = dict.fromkeys(("publishClientSend", "publishClientReceive", "subscribe", "unsubscribe"), True)
        path = self.folder / "dynamic-security.json"
        path.write_text(
            json.dumps(
                {
                    "defaultACLAccess": allowed,
                    "clients": [],
                    "groups": [{"groupname": "anonymous", "roles": [{"rolename": "refusing"}]}],
                    "roles": [{"rolename": "refusing", "acls": acls}],
                    "anonymousGroup": "anonymous",
                }
            )
        )
        return [f"plugin {plugin}", f"plugin_opt_config_file {path}"]

    def _other_listeners(self) -> list[str]:
        lines = [f"listener 0 {self.socket_path}"] if self.unix_socket else []
        if self.websockets:
            lines += [f"listener {self.websockets_port} 127.0.0.1", "protocol websockets"]
        if self.certificates:
            certificates = self.certificates
            lines += [f"listener {self.tls_port} 127.0.0.1", f"cafile {certificates.ca}"]
            lines += [f"certfile {certificates.server}", f"keyfile {certificates.server}"]
            lines += [f"require_certificate {str(self.mutual_tls).lower()}"]
        return lines
