"""config/prometheus and config/grafana against the metrics that there are, promtool and a real Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import yaml

from bridge.announcer import StatusBoard, system_now
from bridge.events import BrokerConnected, CloudFailed, Delivered, QueueCounted
from bridge.message import DeadRow
from bridge.status import Status
from bridge.web import WebServer
from bridge.web.dead import DeadRows
from bridge.web.metrics import METRICS
from tests.harness import LoopThread, free_port, wait_until
from tests.harness.programs import require, require_module

CONFIG = Path(__file__).parents[2] / "config"
PROMETHEUS = CONFIG / "prometheus"
DASHBOARD = CONFIG / "grafana/dashboards/edge-bridge.json"
REMEDY = "apt-get install prometheus"
SCRAPE_SECONDS = 20
STARTING = 503
GRID_COLUMNS = 24  # of a dashboard of Grafana
METRIC = re.compile(r"\bedge_bridge_[a-z_]+\b")


def expressions() -> Iterator[tuple[str, str]]:
    """Every panel's and every alert's name and what it asks Prometheus."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def test_rules_and_dashboard_know_no_metric_that_is_not_there() -> None:
    known = {metric.name for metric in METRICS}
    asked = {name for _, expression in expressions() for name in METRIC.findall(expression)}
    assert asked - known == set()


def test_the_dashboard_shows_every_metric() -> None:
    shown = set(METRIC.findall(DASHBOARD.read_text()))
    averages = {metric.name for metric in METRICS if "_load_" in metric.name}  # Prometheus makes its own
    assert {metric.name for metric in METRICS} - averages - shown == set()


def test_grafana_s_own_model_of_a_dashboard_understands_all_of_it() -> None:
    """No Grafana is at hand; what it would not understand, the model that its makers generate from it leaves out."""
    model, plugins, encoder = (require_module(f"grafana_foundation_sdk.{name}") for name in SDK_MODULES)
    plugins.register_default_plugins()
    shipped = json.loads(DASHBOARD.read_text())
    understood = json.loads(encoder.JSONEncoder().encode(model.Dashboard.from_json(shipped)))
    for variable in shipped["templating"]["list"]:
        variable.pop("definition", None)  # Grafana writes it, its model does not know it
    assert list(left_out(shipped, understood)) == []


SDK_MODULES = ("models.dashboard", "cog.plugins", "cog.encoder")


def left_out(shipped: Any, understood: Any, place: str = "") -> Iterator[str]:
    """Every place where the second does not have what the first has; it may have more, such as defaults."""
    if isinstance(shipped, dict) and isinstance(understood, dict):
        for name, value in shipped.items():
            yield from left_out(value, understood.get(name), f"{place}/{name}")
    elif isinstance(shipped, list) and isinstance(understood, list) and len(shipped) == len(understood):
        for number, (value, other) in enumerate(zip(shipped, understood, strict=True)):
            yield from left_out(value, other, f"{place}/{number}")
    elif shipped != understood:
        yield place


def test_the_panels_lie_beside_each_other_and_have_names_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    for name in ("id", "title"):
        assert len({panel[name] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        x, y, width, height = (panel["gridPos"][name] for name in "xywh")
        assert x + width <= GRID_COLUMNS
        squares = {(column, row) for column in range(x, x + width) for row in range(y, y + height)}
        assert not squares & taken, panel["title"]
        taken |= squares


def test_prometheus_dashboard_and_alerts_agree_on_the_name_of_the_job() -> None:
    (job,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    for name, expression in expressions():
        selectors = re.findall(r"\b(?:edge_bridge_[a-z_]+|up)(\{[^}]*\})?", expression)
        assert selectors, name
        assert all(f'job="{job["job_name"]}"' in selector for selector in selectors), name


def test_promtool_finds_nothing_wrong() -> None:
    promtool = require("promtool", REMEDY)
    for command in (("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")):
        checked = subprocess.run([promtool, *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_is_tried() -> None:
    tried = (PROMETHEUS / "alerts_test.yml").read_text()
    alerts = [rule["alert"] for rule in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]]
    assert [alert for alert in alerts if f'"{alert}"' not in tried] == []


def test_the_operator_is_told_of_every_alert_and_metric() -> None:
    told = (CONFIG.parent / "docs/OPERATE.md").read_text()
    alerts = [name for name, _ in expressions() if name.startswith("EdgeBridge")]
    assert alerts
    assert [alert for alert in alerts if f"| `{alert}` |" not in told] == []
    rows = [f"| `{metric.name}` | {metric.kind} | {metric.meaning} |" for metric in METRICS]
    assert [row for row in rows if row not in told] == []


# ---- a real one ----


class Prometheus:
    """The real program under the shipped configuration; only the target and the interval are changed."""

    def __init__(self, folder: Path, target: str) -> None:
        self._folder, self._port = folder, free_port()
        shipped = (PROMETHEUS / "prometheus.yml").read_text()
        (folder / "prometheus.yml").write_text(shipped.replace("bridge:8080", target).replace("15s", "1s"))
        copy(PROMETHEUS / "alerts.yml", folder)

    def start(self) -> None:
        program = require("prometheus", REMEDY)
        options = {
            "config.file": f"{self._folder}/prometheus.yml",
            "storage.tsdb.path": f"{self._folder}/data",
            "web.listen-address": f"127.0.0.1:{self._port}",
        }
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, *(f"--{name}={value}" for name, value in options.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, path: str, **parameters: str) -> Any:
        """Return what the API answers: None while it starts, and a text if it refuses."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v1/{path}?{query}", timeout=5) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            return error.read().decode() if error.code != STARTING else None
        except OSError:
            return None

    def value(self, expression: str) -> str | None:
        """The value of an expression that has one sample."""
        found = self.ask("query", query=expression)
        return found["result"][0]["value"][1] if found and found["result"] else None


async def no_dead_rows(_rows_max: int) -> list[DeadRow]:
    return []


async def none_requeued(_row_ids: Sequence[int]) -> int:
    return 0


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    """Prometheus that scrapes a bridge's web server, on which every metric has a value."""
    board = StatusBoard(Status.starting("1.2.3", "press-4", system_now()))
    board.emit(BrokerConnected(session_present=False, reconnects=0))
    board.emit(QueueCounted(42, 3, 900, 1, 2**30, 2**31, 7, 1.5, commits=5, written_bytes=4096))
    board.emit(Delivered(900, 0.25))
    board.emit(CloudFailed("timed out", 60.0))
    server, loop = WebServer("127.0.0.1", 0, board, DeadRows(no_dead_rows, none_requeued)), LoopThread("web server")
    prometheus = Prometheus(tmp_path, f"127.0.0.1:{loop.run(server.start())}")
    try:
        prometheus.start()
        yield prometheus
        prometheus.stop()
    finally:
        loop.run(server.stop())
        loop.close()


def test_a_real_prometheus_scrapes_every_metric_and_understands_every_expression(prometheus: Prometheus) -> None:
    wait_until(lambda: prometheus.value('edge_bridge_queue_rows{state="ready"}') == "42", SCRAPE_SECONDS)
    assert prometheus.value('up{job="edge-bridge"}') == "1"
    there = set(prometheus.ask("label/__name__/values"))
    forecasts = {"edge_bridge_queue_full_in_seconds", "edge_bridge_queue_empty_in_seconds"}  # absent: nothing moves
    assert {metric.name for metric in METRICS} - forecasts - there == set()
    for name, expression in expressions():
        filled_in = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
        answer = prometheus.ask("query", query=filled_in)
        assert isinstance(answer, dict), f"{name}: {answer}"
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            filled_in = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            for sample in prometheus.ask("query", query=filled_in)["result"]:
                assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= sample["metric"].keys(), panel["title"]
    (group,) = prometheus.ask("rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}  # unknown: not evaluated yet
