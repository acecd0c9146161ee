"""The tests' own tools break what they say they break, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from tests.harness import REPOSITORY, eventually, free_port, wait_until
from tests.harness.bridge import BridgeProcess, environment
from tests.harness.mosquitto import Mosquitto
from tests.harness.proxy import TcpProxy


@pytest.fixture
async def proxy() -> AsyncIterator[TcpProxy]:
    """A proxy in front of a server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(1_000):
                writer.write(piece)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        with TcpProxy(server.sockets[0].getsockname()[1]) as proxy:
            yield proxy


async def test_the_proxy_passes_everything_on_and_keeps_what_came_first(proxy: TcpProxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    assert [bytes(first) for first in proxy.first_bytes] == [b"hello"]
    writer.close()


async def test_a_black_hole_keeps_the_connection_and_gives_back_all_of_it_afterwards(proxy: TcpProxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    proxy.black_hole = True
    await eventually(lambda: proxy.black_hole)
    writer.write(b"lost in space")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(answer := asyncio.ensure_future(reader.readexactly(13))), 0.2)
    proxy.black_hole = False
    assert await answer == b"lost in space"
    writer.close()


async def test_a_cut_resets_the_connection_and_new_ones_are_fine(proxy: TcpProxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"x")
    await reader.readexactly(1)
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"y")
    assert await reader.readexactly(1) == b"y"
    writer.close()


async def _one_byte_from(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)  # a reset may outrun even this
    try:
        return await reader.readexactly(1)
    finally:
        writer.close()


async def test_a_refusing_proxy_resets_new_connections(proxy: TcpProxy) -> None:
    proxy.refuse = True
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await _one_byte_from(proxy.port)


async def test_each_direction_can_be_delayed(proxy: TcpProxy) -> None:
    proxy.delay_to_target_seconds, proxy.delay_to_source_seconds = 0.1, 0.2
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    started = time.monotonic()
    writer.write(b"z")
    await reader.readexactly(1)
    assert time.monotonic() - started >= 0.3
    writer.close()


def test_settings_become_environment_variables() -> None:
    assert environment({"device_id": "a", "mqtt.port": 1, "mqtt.topics": ["x/#"], "upload.require_receipt": True}) == {
        "BRIDGE_DEVICE_ID": "a",
        "BRIDGE_MQTT__PORT": "1",
        "BRIDGE_MQTT__TOPICS": '["x/#"]',
        "BRIDGE_UPLOAD__REQUIRE_RECEIPT": "true",
    }


def test_a_bridge_is_killed_also_in_the_moment_of_its_birth(tmp_path: Path) -> None:
    bridge = BridgeProcess(tmp_path, {"upload.url": "http://127.0.0.1:9/", "mqtt.port": 1})
    for _ in range(20):
        bridge.start()
        bridge.kill()
        assert bridge.exit_status == -signal.SIGKILL


def test_the_broker_refuses_exactly_the_filters_that_it_was_told_to(tmp_path: Path, mosquitto_installed: None) -> None:
    answers: list[ReasonCode] = []
    answered = threading.Event()

    def on_subscribe(*arguments: object) -> None:
        reasons = arguments[3]
        assert isinstance(reasons, list)
        answers.extend(reasons)
        answered.set()

    with Mosquitto(tmp_path / "mosquitto", refused_filters=("secret/#",)) as broker:
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.on_subscribe = on_subscribe
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        wait_until(client.is_connected)
        client.subscribe([("secret/#", 1), ("edge/predictions/#", 1)])
        assert answered.wait(5)
        client.disconnect()
        client.loop_stop()
    assert [answer.is_failure for answer in answers] == [True, False]


def test_no_two_processes_are_given_the_same_ports() -> None:
    """Or the broker of one run would take the port of another's, while that is away for a second."""
    program = "from tests.harness import free_port; print(*{free_port() for _ in range(600)}); input()"
    command = [sys.executable, "-c", program]
    given: list[set[str]] = [{str(free_port()) for _ in range(600)}]
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            other = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(other.communicate, "\n")  # it ends, and only then gives its block up
            assert other.stdout
            given.append(set(other.stdout.readline().split()))
    assert all(len(ports) > 300 for ports in given)
    assert sum(map(len, given)) == len(set().union(*given))


def test_a_broker_that_lost_its_port_to_another_is_not_taken_for_the_one_that_answers(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    second = Mosquitto(tmp_path / "second", port=mosquitto.port)
    with pytest.raises(AssertionError, match="mosquitto ended"), second:
        wait_until(lambda: not second.running, what="it had to end")
