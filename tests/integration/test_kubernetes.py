"""config/kubernetes: what no schema finds: ports, selectors, pod security, and a configuration that the bridge takes.

The base is checked as it stands. The overlays are built by kubectl, and go through the same checks; all of it goes
through the schemas of the API, of the oldest version that is promised and of a new one.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.config.settings import Settings
from bridge.liveness import GRACE_SECONDS
from tests.harness.programs import TOOLS, missing, require

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "config/kubernetes"
BUILT = ("base", "overlays/production", "overlays/sidecar", "overlays/daemonset")
API_VERSIONS = ("1.27", "1.37")
KUSTOMIZE_MAJOR = 5
PODS = {"StatefulSet", "DaemonSet"}
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
UNITS = {"Mi": 2**20, "Gi": 2**30}

Manifest = dict[str, Any]


def base() -> list[Manifest]:
    names = yaml.safe_load((FOLDER / "base/kustomization.yaml").read_text())["resources"]
    return [manifest for name in names for manifest in yaml.safe_load_all((FOLDER / "base" / name).read_text())]


def built(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all(kustomized(name)))


@cache
def kustomized(name: str) -> str:
    kubectl = require("kubectl", TOOLS)
    version = subprocess.run([kubectl, "version", "--client"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Kustomize Version: v(\d+)", version)
    if not found or int(found[1]) < KUSTOMIZE_MAJOR:
        missing(f"this kubectl is too old: {version}")
    return subprocess.run(
        [kubectl, "kustomize", str(FOLDER / name)], capture_output=True, text=True, check=True, timeout=60
    ).stdout


@pytest.fixture(params=["as it stands", *BUILT])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return base() if request.param == "as it stands" else built(request.param)


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def workload(manifests: list[Manifest]) -> Manifest:
    (found,) = of_kind(manifests, *PODS)
    return found


def pod(manifests: list[Manifest]) -> Manifest:
    found: Manifest = workload(manifests)["spec"]["template"]
    return found


def bridge(manifests: list[Manifest]) -> Manifest:
    (found,) = (held for held in pod(manifests)["spec"]["containers"] if held["name"] == "bridge")
    return dict(found)


def test_pods_are_restricted(manifests: list[Manifest]) -> None:
    """The pod security standard `restricted`, point by point, and a read-only root besides."""
    spec = pod(manifests)["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    for container in (*spec["containers"], *spec.get("initContainers", [])):
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert rights["readOnlyRootFilesystem"]
        assert rights.keys() == {"allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem"}
        assert all("hostPort" not in port for port in container.get("ports", []))
        assert "memory" in container["resources"]["limits"]
    assert {kind for volume in spec["volumes"] for kind in volume if kind != "name"} <= VOLUMES


def test_the_user_is_that_of_the_image(manifests: list[Manifest]) -> None:
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user
    rights = pod(manifests)["spec"]["securityContext"]
    assert (rights["runAsUser"], rights["runAsGroup"], rights["fsGroup"]) == (int(user[1]), int(user[2]), int(user[2]))


def selections(manifests: list[Manifest]) -> Iterator[dict[str, str]]:
    """Every set of labels that is meant to find the bridge's pods."""
    yield workload(manifests)["spec"]["selector"]["matchLabels"]
    for service in of_kind(manifests, "Service"):
        yield service["spec"]["selector"]
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        yield budget["spec"]["selector"]["matchLabels"]
    for policy in of_kind(manifests, "NetworkPolicy"):
        yield policy["spec"]["podSelector"]["matchLabels"]


def test_selectors_find_the_pods(manifests: list[Manifest]) -> None:
    labels = pod(manifests)["metadata"]["labels"].items()
    for selection in selections(manifests):
        assert selection
        assert selection.items() <= labels


def test_a_service_monitor_finds_the_service(manifests: list[Manifest]) -> None:
    (service,) = of_kind(manifests, "Service")
    for monitor in of_kind(manifests, "ServiceMonitor"):
        assert monitor["spec"].keys() == {"selector", "endpoints"}  # no schema of its operator's is at hand
        assert all(endpoint.keys() == {"port", "path", "interval"} for endpoint in monitor["spec"]["endpoints"])
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
        assert monitor["metadata"].get("namespace") == service["metadata"].get("namespace")


def test_ports_probes_and_policy_mean_the_port_that_the_bridge_listens_on(manifests: list[Manifest]) -> None:
    (port,) = bridge(manifests)["ports"]
    assert port["containerPort"] == Settings.model_validate(EMPTY).web.port
    for probe, path in (("startup", "/livez"), ("liveness", "/livez"), ("readiness", "/readyz")):
        assert bridge(manifests)[f"{probe}Probe"]["httpGet"] == {"path": path, "port": port["name"]}
    (service,) = of_kind(manifests, "Service")
    assert [(named["targetPort"], named["port"]) for named in service["spec"]["ports"]] == [
        (port["name"], port["containerPort"])
    ]
    (policy,) = of_kind(manifests, "NetworkPolicy")
    assert {let["port"] for rule in policy["spec"]["ingress"] for let in rule["ports"]} == {port["name"]}


EMPTY: dict[str, Any] = {"upload": {"url": "https://cloud.example/"}}


def test_kubernetes_is_as_patient_as_the_bridge_needs(manifests: list[Manifest]) -> None:
    liveness = bridge(manifests)["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= GRACE_SECONDS
    grace_seconds = Settings.model_validate(EMPTY).shutdown_grace_seconds
    assert pod(manifests)["spec"]["terminationGracePeriodSeconds"] > grace_seconds


def test_the_way_out_leads_to_the_broker_and_the_cloud(manifests: list[Manifest]) -> None:
    (policy,) = of_kind(manifests, "NetworkPolicy")
    ways = {
        port["port"]: [peer.get("podSelector", peer.get("ipBlock")) for peer in rule.get("to", [])]
        for rule in policy["spec"]["egress"]
        for port in rule["ports"]
    }
    assert ways.keys() == {53, 1883, 8883, 443}
    assert ways[1883] == [{"matchLabels": {"app.kubernetes.io/name": "mosquitto"}}]


def test_what_is_mounted_is_there(manifests: list[Manifest]) -> None:
    spec = pod(manifests)["spec"]
    claims = workload(manifests)["spec"].get("volumeClaimTemplates", [])
    there = {volume["name"] for volume in spec["volumes"]} | {claim["metadata"]["name"] for claim in claims}
    for container in spec["containers"]:
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= there
    (queue,) = (value["value"] for value in bridge(manifests)["env"] if value["name"] == "BRIDGE_QUEUE__PATH")
    (place,) = (mount["mountPath"] for mount in bridge(manifests)["volumeMounts"] if mount["name"] == "queue")
    assert queue.startswith(f"{place}/")


CONFIGURATIONS = sorted(FOLDER.glob("**/bridge.toml"))


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda file: file.parent.name)
def test_the_bridge_takes_the_configuration_and_its_secrets_are_mounted(file: Path) -> None:
    tables = tomllib.loads(file.read_text())
    settings = Settings.model_validate(tables)
    assert settings.web.host == "0.0.0.0"  # probes come from outside of the pod
    (generator,) = yaml.safe_load((FOLDER / "base/kustomization.yaml").read_text())["secretGenerator"]
    keys = {literal.partition("=")[0] for literal in generator["literals"]}
    (place,) = (mount["mountPath"] for mount in bridge(base())["volumeMounts"] if mount["name"] == "secrets")
    files = {settings.mqtt.password_file, settings.upload.token_file} - {None}
    assert files <= {Path(place) / key for key in keys}
    assert settings.queue.max_bytes + settings.queue.min_free_disk_bytes < claimed_bytes() / 1.5


def claimed_bytes() -> int:
    (claim,) = workload(base())["spec"]["volumeClaimTemplates"]
    number, unit = re.fullmatch(r"(\d+)(\w+)", claim["spec"]["resources"]["requests"]["storage"]).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def test_the_broker_beside_the_bridge_is_the_shipped_one() -> None:
    """Only comments, names and passwords differ: nobody but the pod reaches its loopback."""

    def options(file: Path) -> set[str]:
        return {line for line in file.read_text().splitlines() if line and line[0] != "#"}

    shipped = options(ROOT / "mosquitto/mosquitto.conf")
    names = {line for line in shipped if line.split()[0] in {"allow_anonymous", "password_file", "acl_file"}}
    assert options(FOLDER / "overlays/sidecar/mosquitto.conf") == shipped - names | {"allow_anonymous true"}


def test_nothing_of_a_stateful_set_is_left_in_the_daemon_set() -> None:
    daemon_set = workload(built("overlays/daemonset"))
    assert daemon_set["kind"] == "DaemonSet"
    assert daemon_set["spec"].keys() == {"selector", "template"}
    assert of_kind(built("overlays/daemonset"), "PodDisruptionBudget") == []


@pytest.mark.parametrize("version", API_VERSIONS)
@pytest.mark.parametrize("name", BUILT)
def test_the_schemas_of_the_api_find_nothing_wrong(name: str, version: str, tmp_path: Path) -> None:
    validate = require("kubernetes-validate", TOOLS)
    known = [manifest for manifest in built(name) if manifest["kind"] != "ServiceMonitor"]  # a kind of its operator's
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(known))
    command = [validate, "--strict", "-k", version, str(tmp_path / "all.yaml")]
    verdict = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    told = verdict.stdout + verdict.stderr
    assert verdict.returncode == 0, told
    assert told.count(f"against version {version}") == told.count(" passed ") == len(known), told
