"""Promise 32: a certificate that does not fit, or a clock at 1970: held, never in the clear, and on by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.harness.authority import Authority
from tests.harness.clock import Clock
from tests.harness.cloud import Cloud
from tests.harness.cloud_stage import CloudStage
from tests.harness.mosquitto import Mosquitto
from tests.harness.proxy import TcpProxy

TOKEN = "canary-of-promise-32"
TRIES = 5
TLS_HANDSHAKE = b"\x16\x03"  # the first bytes of a ClientHello (RFC 8446, 5.1)


class Eavesdropper:
    """A TLS cloud whose certificate can be changed, and somebody on the wire before it."""

    def __init__(self, folder: Path, **certificate: int | str) -> None:
        self.authority = Authority(folder)
        self._context = self.authority.server_context(**certificate)  # type: ignore[arg-type] # as the caller has it
        self.cloud = Cloud(tls=self._context)

    @contextmanager
    def stage(self, folder: Path, broker: Mosquitto, variables: dict[str, str] | None = None) -> Iterator[CloudStage]:
        with self.cloud, TcpProxy(self.cloud.port) as self.wire:
            upload = {
                "url": f"https://127.0.0.1:{self.wire.port}/",
                "token": TOKEN,
                "tls": {"ca": str(self.authority.file)},
            }
            with CloudStage(folder, broker, self.cloud, upload=upload, variables=variables) as stage:
                yield stage
                stage.stop()

    def renew(self) -> None:
        """Show a certificate that fits, as the cloud's operator would."""
        self.authority.show(self._context)

    def assert_nothing_seen(self) -> None:
        """Every connection began a TLS handshake, and none said more than that."""
        heard = list(self.wire.first_bytes)
        assert len([sent for sent in heard if sent]) >= TRIES - 1
        for sent in heard:
            assert TLS_HANDSHAKE.startswith(sent[:2])  # the newest may not have said anything yet
            assert b"POST" not in sent
            assert TOKEN.encode() not in sent
            assert b"message-0" not in sent

    def assert_held(self, stage: CloudStage, words: str) -> None:
        """Try and try again, and keep everything."""
        before = self.wire.connections
        wait_until(lambda: self.wire.connections >= before + TRIES, what=f"{TRIES} tries")
        status = stage.status
        assert status["cloud"]["state"] == "offline"
        assert status["cloud"]["last_error"].startswith(f"TLS certificate not accepted: {words}")
        assert (status["messages"]["delivered"], status["messages"]["dead"]) == (0, 0)
        assert (self.cloud.requests, self.cloud.stored) == ([], {})
        self.assert_nothing_seen()


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        pytest.param({"since_days": -9, "until_days": -1}, "certificate has expired", id="expired"),
        pytest.param({"since_days": 1, "until_days": 9}, "certificate is not yet valid", id="not yet valid"),
        pytest.param({"name": "cloud.example"}, "IP address mismatch", id="wrong host"),
    ],
)
def test_a_certificate_that_does_not_fit_holds_everything_until_it_is_renewed(
    tmp_path: Path, mosquitto: Mosquitto, certificate: dict[str, int | str], words: str
) -> None:
    wire = Eavesdropper(tmp_path, **certificate)
    with wire.stage(tmp_path / "stage", mosquitto) as stage:
        stage.publish_numbered(20)
        stage.wait_stored(20)
        wire.assert_held(stage, words)
        wire.renew()
        stage.wait_delivered()
        stage.audit().assert_kept(duplicates_max=0)
        assert stage.messages["dead"] == 0


def test_a_clock_at_1970_holds_everything_until_it_is_set(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """A board without a battery starts in 1970: every certificate is from the future, until NTP comes."""
    clock = Clock(tmp_path)
    clock.shift("@1970-01-01 00:10:00")
    wire = Eavesdropper(tmp_path)
    with wire.stage(tmp_path / "stage", mosquitto, clock.variables) as stage:
        stage.publish_numbered(20)
        stage.wait_stored(20)
        wire.assert_held(stage, "certificate is not yet valid (the clock here says 1970-01-01)")
        clock.shift("+0")
        stage.wait_delivered()
        stage.audit().assert_kept(duplicates_max=0)


def test_an_authority_that_nobody_trusts_is_no_better(tmp_path: Path, mosquitto: Mosquitto) -> None:
    wire = Eavesdropper(tmp_path)
    (other := tmp_path / "other").mkdir()
    trusted, wire.authority.file = wire.authority.file, Authority(other).file
    with wire.stage(tmp_path / "stage", mosquitto) as stage:
        stage.publish_numbered(20)
        stage.wait_stored(20)
        wire.assert_held(stage, "")
        stage.reconfigure(tls={"ca": str(trusted)})
        stage.wait_delivered()
        stage.audit().assert_kept(duplicates_max=0)


def test_the_eavesdropper_would_have_seen_it(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """The same wire with TLS off: otherwise nothing above could fail."""
    with Cloud() as cloud, TcpProxy(cloud.port) as wire:
        upload = {"url": f"http://127.0.0.1:{wire.port}/", "token": TOKEN, "compression": "none"}
        with CloudStage(tmp_path / "stage", mosquitto, cloud, upload=upload) as stage:
            stage.publish_numbered(1)
            stage.wait_delivered()
        assert any(TOKEN.encode() in sent and b"message-0" in sent for sent in wire.first_bytes)
