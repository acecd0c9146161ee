"""The last hour that the web page shows: what is kept of it, for how long, and that it never grows."""

from __future__ import annotations

from dataclasses import replace

from bridge.events import BrokerConnected, BrokerLost, CloudAnswered, CloudFailed, Event, QueueCounted
from bridge.status import Now, Status
from bridge.web.history import SAMPLE_SECONDS, SAMPLES_MAX, SPAN_SECONDS, TROUBLES_MAX, History

START = Now(1000.0, 1_800_000_000.0)


def later(seconds: float, *, jump_seconds: float = 0.0) -> Now:
    return Now(START.monotonic + seconds, START.wall + seconds + jump_seconds)


def after(*events: Event) -> Status:
    status = Status.starting("1", "press-4", START).apply(BrokerConnected(session_present=False, reconnects=0), START)
    for event in events:
        status = status.apply(event, START)
    return status


FINE, AWAY = after(), after(CloudFailed("timed out", 1.0))


def test_a_sample_tells_what_waited_and_who_was_there() -> None:
    history = History()
    counted = QueueCounted(7, 3, 900, 1, 0, 0, 0, None)
    history.sample(after(counted, BrokerLost("refused", 1.0), CloudFailed("timed out", 1.0)), START)
    assert history.tree(later(12.0))["samples"] == [[12.0, 10, False, "offline"]]


def test_an_hour_is_kept_and_not_more() -> None:
    history = History()
    for number in range(2 * SAMPLES_MAX):
        history.sample(FINE, later(number * SAMPLE_SECONDS))
    ages = [sample[0] for sample in history.tree(later((2 * SAMPLES_MAX - 1) * SAMPLE_SECONDS))["samples"]]
    assert ages[-1] == 0
    assert ages[0] == SPAN_SECONDS - SAMPLE_SECONDS
    assert len(ages) == SAMPLES_MAX


def test_samples_from_before_a_long_sleep_are_not_shown() -> None:
    history = History()
    history.sample(FINE, START)
    assert history.tree(later(SPAN_SECONDS + 1))["samples"] == []


def test_a_clock_that_jumps_bends_no_age() -> None:
    history = History()
    history.sample(AWAY, START)
    told = history.tree(later(5.0, jump_seconds=10 * 365 * 86_400))
    assert told["samples"][0][0] == 5.0
    assert told["troubles"][0]["last_age_seconds"] == 5.0


def test_a_trouble_that_lasts_counts_once_and_one_that_comes_back_again() -> None:
    history = History()
    for seconds, status in ((0, AWAY), (5, AWAY), (10, FINE), (15, AWAY), (20, FINE)):
        history.look(status, later(seconds))
    (trouble,) = history.tree(later(60))["troubles"]
    assert trouble["text"] == "cloud offline: timed out"
    assert (trouble["times"], trouble["present"], trouble["last_age_seconds"]) == (2, False, 45.0)
    assert trouble["first_at"] == "2027-01-15T08:00:00.000Z"
    assert trouble["last_at"] == "2027-01-15T08:00:15.000Z"


def test_the_newest_trouble_stands_first_and_says_whether_it_is_over() -> None:
    history = History()
    history.look(AWAY, START)
    history.look(after(CloudAnswered(), BrokerLost("refused", 1.0)), later(5))
    troubles = history.tree(later(6))["troubles"]
    assert [(trouble["text"], trouble["present"]) for trouble in troubles] == [
        ("broker not connected: refused", True),
        ("cloud offline: timed out", False),
    ]


def test_how_many_wait_makes_no_new_trouble() -> None:
    history = History()
    for waiting in range(5):
        history.sample(replace(AWAY, queue=QueueCounted(waiting, 0, 0, 0, 0, 0, 0, None)), later(5 * waiting))
    assert [trouble["times"] for trouble in history.tree(later(30))["troubles"]] == [1]


def test_troubles_with_ever_new_words_do_not_pile_up() -> None:
    history = History()
    for number in range(3 * TROUBLES_MAX):
        history.look(after(CloudFailed(f"error {number}", 1.0)), later(number))
    texts = [trouble["text"] for trouble in history.tree(later(100))["troubles"]]
    assert texts == [f"cloud offline: error {3 * TROUBLES_MAX - 1 - number}" for number in range(TROUBLES_MAX)]
