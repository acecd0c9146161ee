"""The receiver over real HTTP on a real disk: each event once, on disk before the answer, and honest refusals."""

from __future__ import annotations

import asyncio
import gzip
import io
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import zstandard

from bridge.errors import DiskFailedError, DiskFullError, OperatorError
from bridge.receiver.answers import compose
from bridge.receiver.app import BODY_BYTES_MAX, ReceiverOptions, serve
from bridge.receiver.store import ANSWERS_KEPT, FILE_NAME, Deposit, Store, StoreThread
from tests.harness import eventually

BATCH = {"Content-Type": "application/cloudevents-batch+json"}


def event(event_id: str, payload: str = '{"label":"cat"}', source: str = "edge/a") -> bytes:
    return f'{{"specversion":"1.0","id":"{event_id}","source":"{source}","type":"t","data":{payload}}}'.encode()


def batch(*ids: str) -> bytes:
    return b"[%b]" % b",".join(event(event_id) for event_id in ids)


class Sender:
    """A session with one receiver."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def post(self, body: bytes | io.BytesIO, path: str = "/", **headers: str) -> tuple[int, Any]:
        status, document, _ = await self.post_fully(
            body, path, {name.replace("_", "-"): headers[name] for name in headers}
        )
        return status, document

    async def post_fully(
        self, body: bytes | io.BytesIO, path: str, headers: dict[str, str]
    ) -> tuple[int, Any, dict[str, str]]:
        async with self._session.post(path, data=body, headers=BATCH | headers) as answer:
            return answer.status, await answer.json(), dict(answer.headers)

    async def ask(self, method: str, path: str, document: object = None) -> tuple[int, Any]:
        async with self._session.request(method, path, json=document) as answer:
            return answer.status, await answer.json()

    async def stats(self) -> dict[str, int]:
        return dict((await self.ask("GET", "/stats"))[1])

    async def ids(self) -> list[str]:
        return [one["id"] for one in (await self.ask("GET", "/events"))[1]["events"]]


@asynccontextmanager
async def receiver(folder: Path, token: str | None = None, *, allow_faults: bool = True) -> AsyncIterator[Sender]:
    """Serve in this test's own loop, and stop in order."""
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    options = ReceiverOptions(folder, port=0, token=token, allow_faults=allow_faults)
    serving = asyncio.create_task(serve(options, url.set_result, stop))
    await asyncio.wait((url, serving), return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    authorization = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(await url, headers=authorization) as session:
        yield Sender(session)
    stop.set()
    await serving


@pytest.fixture
async def sender(tmp_path: Path) -> AsyncIterator[Sender]:
    async with receiver(tmp_path / "data") as sender:
        yield sender


async def test_each_event_is_stored_once_however_often_it_comes(sender: Sender) -> None:
    assert await sender.post(batch("a", "b")) == (200, {"stored": 2, "duplicates": 0})
    assert await sender.post(batch("b", "c", "c"), "/any/path") == (200, {"stored": 1, "duplicates": 2})
    assert await sender.ids() == ["a", "b", "c"]
    assert await sender.stats() == {"received": 5, "unique": 3, "duplicates": 2, "requests": 2}


async def test_one_id_from_two_sources_is_two_events(sender: Sender) -> None:
    body = b"[%b,%b]" % (event("1", source="edge/a"), event("1", source="edge/b"))
    assert await sender.post(body) == (200, {"stored": 2, "duplicates": 0})


async def test_everything_is_still_there_after_a_restart_counters_and_answers_too(tmp_path: Path) -> None:
    key = '"k"'
    async with receiver(tmp_path) as sender:
        first = await sender.post(batch("a", "b"), Idempotency_Key=key)
        before = await sender.stats()
    async with receiver(tmp_path) as sender:
        assert await sender.stats() == before
        assert await sender.post(batch("a", "b"), Idempotency_Key=key) == first
        assert await sender.stats() == {"received": 4, "unique": 2, "duplicates": 2, "requests": 2}


async def test_events_keep_the_bytes_they_came_with(sender: Sender, tmp_path: Path) -> None:
    first = event("a", '{"n": 1.10, "big":12345678901234567890123}')
    foreign = b'{ "type":"t", "source":"s" ,"id":"b",\n"specversion":"1.0", "data":1e400}'
    await sender.post(b"[%b , %b]" % (first, foreign))
    async with sender._session.get("/events") as answer:
        assert await answer.read() == b'{"events":[%b,%b],"next":2}' % (first, foreign)


async def test_events_are_paged_in_order_of_arrival(sender: Sender) -> None:
    await sender.post(batch(*"abcde"))
    assert [one["id"] for one in (await sender.ask("GET", "/events?limit=2"))[1]["events"]] == ["a", "b"]
    _, page = await sender.ask("GET", "/events?after=2&limit=2")
    assert ([one["id"] for one in page["events"]], page["next"]) == (["c", "d"], 4)
    assert await sender.ask("GET", "/events?after=5") == (200, {"events": [], "next": 5})


@pytest.mark.parametrize("query", ["after=x", "after=-1", "limit=1.5", "after=" + "9" * 30, "limit="])
async def test_a_page_that_is_not_a_number_is_refused(sender: Sender, query: str) -> None:
    status, document = await sender.ask("GET", f"/events?{query}")
    assert status == 400
    assert "whole number" in document["error"]


async def test_bad_events_are_named_one_by_one_and_the_others_stored(sender: Sender) -> None:
    await sender.post(batch("old"))
    bad = b'{"specversion":"0.3","id":"bad","source":"s","type":"t"}'
    status, document = await sender.post(b"[%b,%b,17,%b]" % (event("new"), bad, event("old")))
    assert status == 207
    assert [(one["id"], one["status"]) for one in document["results"]] == [
        ("new", 201), ("bad", 400), (None, 400), ("old", 200),
    ]  # fmt: skip
    assert document["results"][1]["error"] == 'specversion is not "1.0"'
    assert await sender.ids() == ["old", "new"]


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("application/cloudevents-batch+json; charset=utf-8", batch("a", "b"), 2),
        ("application/cloudevents+json", event("a"), 1),
        ("application/x-ndjson", event("a") + b"\n" + event("b") + b"\n", 2),
        ("application/json", b'[{"label":"cat"},{"label":"cat"},{"event_id":"x"},{"event_id":"x"}]', 3),
    ],
)
async def test_all_four_formats_are_understood(sender: Sender, content_type: str, body: bytes, expected: int) -> None:
    status, document = await sender.post(body, Content_Type=content_type)
    assert (status, document["stored"]) == (200, expected)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("zstd", zstandard.ZstdCompressor().compress)])
async def test_compressed_bodies_are_understood_and_bombs_refused(
    sender: Sender, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    assert await sender.post(pack(batch("a")), Content_Encoding=encoding) == (200, {"stored": 1, "duplicates": 0})
    status, _ = await sender.post(pack(b" " * (BODY_BYTES_MAX + 1)), Content_Encoding=encoding)
    assert status == 413
    assert (await sender.post(pack(batch("b"))[:-4], Content_Encoding=encoding))[0] == 400
    assert await sender.ids() == ["a"]


async def test_a_body_over_the_bound_is_refused(sender: Sender) -> None:
    assert (await sender.post(io.BytesIO(b" " * (BODY_BYTES_MAX + 1))))[0] == 413
    assert (await sender.post(batch("a")))[0] == 200


async def test_what_is_not_understood_is_refused_with_what_would_be(sender: Sender) -> None:
    status, document, headers = await sender.post_fully(b"[]", "/", {"Content-Type": "text/plain"})
    assert (status, headers["Accept-Encoding"]) == (415, "gzip, zstd")
    assert "application/x-ndjson" in document["error"]
    assert (await sender.post(b"[]", Content_Encoding="br"))[0] == 415
    assert (await sender.post(b'[{"id":'))[0] == 400
    assert (await sender.post(b"[17]"))[0] == 400
    assert (await sender.post(b"[]", "/stats"))[0] == 405
    assert (await sender.ask("GET", "/nothing"))[0] == 405
    assert (await sender.stats())["received"] == 0


async def test_a_key_gets_its_first_answer_again_and_the_key_echoed(sender: Sender) -> None:
    await sender.post(batch("old"))
    for _ in range(2):
        status, document, headers = await sender.post_fully(batch("old", "new"), "/", {"Idempotency-Key": '"k"'})
        assert (status, document) == (200, {"stored": 1, "duplicates": 1})
        assert headers["Idempotency-Key"] == '"k"'
    assert await sender.ids() == ["old", "new"]
    assert await sender.stats() == {"received": 5, "unique": 2, "duplicates": 3, "requests": 3}


async def test_a_key_is_known_again_under_another_compression(sender: Sender) -> None:
    await sender.post(batch("a"), Idempotency_Key='"k"')
    again = await sender.post(gzip.compress(batch("a")), Idempotency_Key='"k"', Content_Encoding="gzip")
    assert again == (200, {"stored": 1, "duplicates": 0})


async def test_a_key_with_another_body_is_refused_and_nothing_stored(sender: Sender) -> None:
    await sender.post(batch("a"), Idempotency_Key='"k"')
    assert (await sender.post(batch("b"), Idempotency_Key='"k"'))[0] == 422
    assert await sender.ids() == ["a"]


async def test_a_key_in_progress_is_told_to_wait(sender: Sender) -> None:
    await sender.ask("PUT", "/faults", {"delay_seconds": 3600, "count": 1})

    async def struck() -> bool:
        return bool((await sender.ask("GET", "/faults"))[1]["count"] == 0)

    slow = asyncio.create_task(sender.post(batch("a"), Idempotency_Key='"k"'))
    condition: Callable[[], bool | Awaitable[bool]] = struck
    await eventually(condition)
    status, document = await sender.post(batch("a"), Idempotency_Key='"k"')
    assert status == 409
    assert "in progress" in document["error"]
    assert (await sender.post(batch("a"), Idempotency_Key='"other"'))[0] == 200
    slow.cancel()


@pytest.mark.parametrize("key", ["", "k" * 256, "k\u00e9"])
async def test_a_key_that_is_none_is_refused(sender: Sender, key: str) -> None:
    assert (await sender.post(batch("a"), Idempotency_Key=key))[0] == 400


async def test_only_who_has_the_token_may_do_anything_but_ask_for_health(tmp_path: Path) -> None:
    async with receiver(tmp_path, token="right") as sender:
        assert (await sender.post(batch("a")))[0] == 200
        for wrong in ("Bearer wrong", "right", "Bearer", "", "Bearer r\u00efght"):
            assert (await sender.post(batch("a"), Authorization=wrong))[0] == 401
        async with aiohttp.ClientSession(sender._session._base_url) as stranger:
            for method, path in (("POST", "/"), ("GET", "/stats"), ("GET", "/events"), ("PUT", "/faults")):
                async with stranger.request(method, path) as answer:
                    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), path
            async with stranger.get("/healthz") as answer:
                assert answer.status == 200


async def test_refused_requests_are_counted(sender: Sender) -> None:
    await sender.post(b"rubbish")
    await sender.post(batch("a"))
    assert (await sender.stats())["requests"] == 2


async def test_faults_are_off_limits_unless_allowed(tmp_path: Path) -> None:
    async with receiver(tmp_path, allow_faults=False) as sender:
        for method in ("PUT", "GET", "DELETE"):
            assert (await sender.ask(method, "/faults", {"status": 503}))[0] == 403
        assert (await sender.post(batch("a")))[0] == 200


async def test_a_fault_answers_instead_of_storing_until_it_is_cleared(sender: Sender) -> None:
    assert (await sender.ask("PUT", "/faults", {"status": 503, "retry_after": 1.5}))[0] == 200
    status, _, headers = await sender.post_fully(batch("a"), "/", {})
    assert (status, headers["Retry-After"]) == (503, "2")
    await sender.ask("DELETE", "/faults")
    assert await sender.post(batch("a")) == (200, {"stored": 1, "duplicates": 0})


async def test_a_fault_with_a_mistake_is_refused_and_the_one_before_stays(sender: Sender) -> None:
    await sender.ask("PUT", "/faults", {"status": 503})
    status, document = await sender.ask("PUT", "/faults", {"status": 503, "shar": 1})
    assert status == 400
    assert "shar" in document["error"]
    assert (await sender.post(batch("a")))[0] == 503


@pytest.mark.parametrize(("cut", "stored"), [("before", []), ("after", ["a"])])
async def test_a_cut_connection_gets_no_answer(sender: Sender, cut: str, stored: list[str]) -> None:
    await sender.ask("PUT", "/faults", {"cut": cut, "count": 1})
    with pytest.raises(aiohttp.ClientConnectionError):
        await sender.post(batch("a"), Idempotency_Key='"k"')
    assert await sender.ids() == stored
    assert await sender.post(batch("a"), Idempotency_Key='"k"') == (200, {"stored": 1, "duplicates": 0})
    assert await sender.ids() == ["a"]


async def test_chosen_events_are_rejected_and_the_others_stored(sender: Sender) -> None:
    await sender.ask("PUT", "/faults", {"reject_ids": ["b"], "reject_status": 422})
    status, document = await sender.post(batch(*"abc"))
    assert status == 207
    assert [one["status"] for one in document["results"]] == [201, 422, 201]
    assert await sender.ids() == ["a", "c"]


async def test_many_senders_at_once_lose_nothing_and_store_nothing_twice(sender: Sender) -> None:
    async def send(number: int) -> None:
        for step in range(10):
            mine = (f"{number}-{step}", f"shared-{step}")
            assert (await sender.post(batch(*mine), Idempotency_Key=f'"{number}-{step}"'))[0] == 200

    await asyncio.gather(*(send(number) for number in range(20)))
    ids = await sender.ids()
    assert len(ids) == len(set(ids)) == 20 * 10 + 10
    assert await sender.stats() == {"received": 400, "unique": 210, "duplicates": 190, "requests": 200}


async def test_folder_and_files_are_private(sender: Sender, tmp_path: Path) -> None:
    await sender.post(batch("a"))
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").iterdir()}
    assert modes == dict.fromkeys([FILE_NAME, f"{FILE_NAME}-wal"], 0o600)


async def test_a_second_receiver_on_the_same_folder_is_refused(sender: Sender, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="locked") as error:
        async with receiver(tmp_path / "data"):
            pass
    assert "other receiver" in error.value.hint


async def test_a_port_in_use_is_the_operators_to_change(sender: Sender, tmp_path: Path) -> None:
    port = sender._session._base_url.port if sender._session._base_url else None
    assert port
    with pytest.raises(OperatorError, match=f"port {port}"):
        await serve(ReceiverOptions(tmp_path / "second", port=port), lambda _url: None, asyncio.Event())


@pytest.mark.parametrize("content", [b"rubbish" * 1000, b"SQLite format 3\0" + b"x" * 5000])
def test_a_file_that_is_not_ours_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(OperatorError):
        Store(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == content


@pytest.mark.parametrize("file_path", ["data", "data/receiver.db"])
def test_a_folder_that_can_not_be_written_is_refused(tmp_path: Path, file_path: str) -> None:
    """Root may write anywhere, so a file stands where a folder should be, and the other way round."""
    if file_path == "data":
        (tmp_path / file_path).touch()
    else:
        (tmp_path / file_path).mkdir(parents=True)
    with pytest.raises(OperatorError, match="can not write") as error:
        Store(tmp_path / "data")
    assert "--data" in error.value.hint


def test_answers_are_kept_up_to_a_bound_and_the_newest_stay(tmp_path: Path) -> None:
    store = Store(tmp_path)
    answers = [f'"{number}"' for number in range(ANSWERS_KEPT + 10)]
    for start in range(0, len(answers), 1000):
        store.together([_keyed(key) for key in answers[start : start + 1000]])
    assert store._value("SELECT count(*) FROM answers") == ANSWERS_KEPT
    assert store._answered(answers[0]) is None
    assert store._answered(answers[-1]) is not None
    store.close()


def _keyed(key: str) -> Callable[[Store], Any]:
    return lambda store: store.deposit(Deposit([], key, b"", partial(compose, [])))


async def test_a_full_disk_stores_nothing_says_so_and_passes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    thread = StoreThread(store)
    pages = store._value("PRAGMA page_count")
    store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(DiskFullError):
        await thread.run(
            lambda store: store._connection.execute("INSERT INTO answers VALUES (1,'k','',200,zeroblob(99999))")
        )
    assert not thread.failed.done()
    store._connection.execute("PRAGMA max_page_count = 100000")
    assert (await thread.run(Store.stats)).requests == 0
    await thread.close()


async def test_a_disk_that_fails_ends_the_receiver_loudly(tmp_path: Path) -> None:
    thread = StoreThread(Store(tmp_path))
    with pytest.raises(DiskFailedError):
        await thread.run(lambda store: store._connection.execute("SELECT * FROM nowhere"))
    assert isinstance(thread.failed.exception(), DiskFailedError)
    await thread.close()


async def test_work_that_fails_takes_its_whole_transaction_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(DiskFailedError):
        store.together([_keyed('"k"'), lambda store: store._connection.execute("SELECT * FROM nowhere")])
    assert store._answered('"k"') is None
    assert store.stats().requests == 0
    store.close()
