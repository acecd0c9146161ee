"""systemd's side of the bridge: a real notification socket, a bridge under it, and what it says there, and when not."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import free_port, wait_until
from tests.harness.bridge import BridgeProcess
from tests.harness.cloud import answer
from tests.harness.stage import Gate, Stage

WATCHDOG_SECONDS = 2.0
QUICK: dict[str, object] = {"upload.timeout_seconds": 0.3, "upload.linger_ms": 0}


class ServiceManager:
    """The socket that systemd gives a service of Type=notify; `said` is every line that came, with its time."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.said: list[tuple[float, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def variables(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": str(int(WATCHDOG_SECONDS * 1e6))}

    def lines(self, prefix: str) -> list[str]:
        return [line for _, line in list(self.said) if line.startswith(prefix)]

    def status(self) -> str:
        return self.lines("STATUS=")[-1]

    def wait_online(self) -> None:
        wait_until(lambda: "STATUS=online" in self.lines("STATUS="), 15, "online")

    def wait_fed(self, more: int) -> None:
        """Wait for so many feedings more than now."""
        wanted = len(self.lines("WATCHDOG=1")) + more
        wait_until(lambda: len(self.lines("WATCHDOG=1")) >= wanted, 30, f"{more} more feedings")

    def hungry(self) -> bool:
        """Tell whether the watchdog would have killed the bridge by now."""
        last = max((at for at, line in list(self.said) if line == "WATCHDOG=1"), default=0.0)
        return time.monotonic() - last > WATCHDOG_SECONDS

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()

    def _listen(self) -> None:
        while datagram := self._socket.recv(4096):
            self.said += [(time.monotonic(), line) for line in datagram.decode().split("\n")]


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[ServiceManager]:
    systemd = ServiceManager(str(tmp_path / "notify"))
    yield systemd
    systemd.close()


def healthz(port: int) -> tuple[int, str]:
    """Ask /healthz: (HTTP status, reason); 0 if there is no answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2) as response:
            return response.status, ""
    except urllib.error.HTTPError as error:
        return error.code, str(json.load(error)["reason"])
    except OSError:
        return 0, ""


def start(stage: Stage, systemd: ServiceManager, sabotage: str = "", **more: object) -> BridgeProcess:
    settings = QUICK | {key.replace("__", "."): value for key, value in more.items()}
    return stage.bridge(sabotage, settings=settings, variables=systemd.variables).start()


def test_ready_fed_reloaded_and_stopped_in_this_order(stage: Stage, systemd: ServiceManager) -> None:
    bridge = start(stage, systemd)
    wait_until(lambda: systemd.lines("READY=1"), 15, "ready")
    assert (stage.queue_path / "data.db").exists(), "ready means that messages can be stored"
    systemd.wait_fed(3)
    wait_until(lambda: systemd.status() == "STATUS=online", what="the status in words")
    before = time.monotonic_ns() // 1000
    bridge.hup()
    wait_until(lambda: len(systemd.lines("READY=1")) == 2, what="ready again")
    (reloading,) = systemd.lines("MONOTONIC_USEC=")
    assert before <= int(reloading.partition("=")[2]) <= time.monotonic_ns() // 1000
    bridge.terminate()
    assert bridge.wait() == 0
    order = [line for _, line in systemd.said if line in {"READY=1", "RELOADING=1", "STOPPING=1"}]
    assert order == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


def test_an_abstract_socket_is_spoken_to_and_another_process_s_watchdog_is_not_fed(stage: Stage) -> None:
    systemd = ServiceManager(f"@edge-bridge-test-{free_port()}")
    stage.bridge(variables=systemd.variables | {"WATCHDOG_PID": "1"}).start()
    wait_until(lambda: systemd.lines("READY=1"), 15, "ready")
    systemd.close()


def test_a_reload_that_fails_is_over_all_the_same(stage: Stage, systemd: ServiceManager, tmp_path: Path) -> None:
    """A service that never says READY=1 again would be `reloading` for ever."""
    token = tmp_path / "token"
    token.write_text("secret")
    bridge = start(stage, systemd, upload__token_file=str(token))
    wait_until(lambda: systemd.lines("READY=1"), 15, "ready")
    token.unlink()
    bridge.hup()
    wait_until(lambda: len(systemd.lines("READY=1")) == 2, what="ready again")
    assert "configuration not reloaded" in bridge.stderr


@pytest.mark.parametrize(
    ("part", "blamed"),
    [
        ("disk", "disk thread"),
        ("broker", "connection to the broker"),
        ("uploader", "uploader"),
        pytest.param("loop", "", id="the event loop, which cannot even say so"),
    ],
)
def test_a_part_that_hangs_is_no_longer_covered_up(
    stage: Stage, systemd: ServiceManager, part: str, blamed: str
) -> None:
    port = free_port()
    bridge = start(stage, systemd, f"hang={part}", web__port=port)
    systemd.wait_online()
    stage.publish(1)
    wait_until(systemd.hungry, 30, "the watchdog is not fed")
    assert bridge.running, "it is the service manager that ends it"
    if blamed:
        wait_until(lambda: blamed in systemd.status(), what=f"{blamed} in the status")
        status_code, reason = healthz(port)
        assert (status_code, blamed in reason) == (503, True)
        assert len([line for line in bridge.stderr.splitlines() if "a part hangs" in line]) == 1


def test_a_disk_that_comes_back_in_time_is_fed_through_and_a_later_one_again(stage: Stage, tmp_path: Path) -> None:
    """A stall is the card's, a hang is not told from it before the grace; what comes back is alive (promise 6)."""
    gate, port = Gate(tmp_path), free_port()
    systemd = ServiceManager(str(tmp_path / "notify"))
    bridge = start(stage, systemd, gate.sabotage, web__port=port)
    systemd.wait_online()
    publisher = stage.publish(1)
    wait_until(systemd.hungry, 30, "the watchdog is not fed")
    gate.let_through(1000)
    systemd.wait_fed(2)
    wait_until(lambda: healthz(port)[0] == 200, what="healthy again")
    stage.drain()
    stage.audit(publisher).assert_kept(duplicates_max=0)
    assert "every part moves again" in bridge.stderr
    systemd.close()


def test_neither_the_cloud_nor_the_broker_being_away_keeps_the_watchdog_hungry(
    stage: Stage, systemd: ServiceManager
) -> None:
    port = free_port()
    stage.cloud.always(answer(503, {"Retry-After": "3600"}))
    bridge = start(stage, systemd, web__port=port)
    systemd.wait_online()
    stage.publish(1)
    wait_until(lambda: "cloud throttled" in systemd.status(), what="the cloud is away")
    stage.broker.stop()
    wait_until(lambda: "broker not connected" in systemd.status(), what="the broker is away too")
    away_at = time.monotonic()
    while time.monotonic() - away_at < 2 * WATCHDOG_SECONDS:
        systemd.wait_fed(1)
        assert not systemd.hungry()
        assert healthz(port)[0] == 200
    assert "a part hangs" not in bridge.stderr
