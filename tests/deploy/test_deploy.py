"""What is deployed from: every file is checked by the tool that reads it, as far as it can be had here."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUBERNETES = "1.33"


def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def pods(resource: Any) -> Iterator[dict[str, Any]]:
    """The pod templates anywhere in a resource."""
    if isinstance(resource, dict):
        if isinstance(resource.get("spec"), dict) and "containers" in resource["spec"]:
            yield resource
        for each in resource.values():
            yield from pods(each)
    elif isinstance(resource, list):
        for each in resource:
            yield from pods(each)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_dockerfiles_pass_hadolint(name: str) -> None:
    binary = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([binary, DEPLOY / name], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_dockerfiles_copy_what_the_installation_needs(name: str) -> None:
    text = (DEPLOY / name).read_text()
    copied = {word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]}
    root = DEPLOY.parent
    assert all((root / each).exists() for each in copied)
    assert copied >= {"pyproject.toml", "curation", "workers", "pipelines", "model", "deploy"}
    assert "USER 1000" in text
    for script in ("install.sh", "system-packages.sh"):
        subprocess.run(["sh", "-n", DEPLOY / script], check=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_resources_keep_to_their_schemas(path: Path) -> None:
    for resource in documents(path):
        if resource["apiVersion"] != "ray.io/v1":
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)
        for pod in pods(resource):  # those inside KubeRay's resources, too
            named = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"} | pod.get("metadata", {})}
            kubernetes_validate.validate(named | {"spec": pod["spec"]}, KUBERNETES, strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_pods_are_bounded_probed_and_unprivileged(path: Path) -> None:
    for pod in [pod for resource in documents(path) for pod in pods(resource)]:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
            assert container.keys() >= {"livenessProbe", "readinessProbe"}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            environment = {each["name"]: each for each in container["env"]}
            assert environment["RAY_AUTH_MODE"]["value"] == "token"
            assert "secretKeyRef" in environment["RAY_AUTH_TOKEN"]["valueFrom"]


def test_the_network_is_closed_and_every_policy_finds_its_pods() -> None:
    policies = [each for path in MANIFESTS for each in documents(path) if each["kind"] == "NetworkPolicy"]
    closed = {kind for each in policies if each["spec"]["podSelector"] == {} for kind in each["spec"]["policyTypes"]}
    assert closed == {"Ingress", "Egress"}
    labels = [pod["metadata"]["labels"] for path in MANIFESTS for each in documents(path) for pod in pods(each)]
    given_by_kuberay = ("ray.io/node-type",)
    for policy in policies:
        for name, value in policy["spec"]["podSelector"].get("matchLabels", {}).items():
            assert name in given_by_kuberay or any(each.get(name) == value for each in labels), policy["metadata"]


def test_no_secret_is_written_down() -> None:
    for path in [path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix in (".yaml", ".yml", ".service")]:
        for resource in documents(path) if path.suffix != ".service" else []:
            assert not (isinstance(resource, dict) and resource.get("kind") == "Secret"), path
        assert not re.search(r"(password|token|secret|key): *['\"]?[A-Za-z0-9+/]{20,}", path.read_text(), re.I), path


def test_ray_accepts_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    found = prepare_config(yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text()))
    validate_config(found)
    commands = [*found["head_start_ray_commands"], *found["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in each for each in commands if " start " in each)


def test_ray_serve_accepts_the_configuration_of_the_service() -> None:
    from ray.serve.schema import ServeDeploySchema

    from pipelines.service import on_ray_serve

    [service] = [each for each in documents(DEPLOY / "kubernetes" / "rayservice.yaml") if each["kind"] == "RayService"]
    found = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    [application] = found.applications
    assert application.import_path == f"{on_ray_serve.__name__}:{on_ray_serve.build.__name__}"
    arguments = on_ray_serve.Arguments(**application.args)
    mounts = [mount["mountPath"] for pod in pods(service) for each in pod["spec"]["containers"]
              for mount in each["volumeMounts"]]  # fmt: skip
    for path in (arguments.datasets, *arguments.inputs, str(arguments.tokens)):
        assert any(path.startswith(f"{mount}/") for mount in mounts), path
    assert service["spec"]["upgradeStrategy"]["type"] == "None"


def test_compose_publishes_on_loopback_only_and_names_what_is_there() -> None:
    found = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name, service in found["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        assert set(service.get("networks", [])) <= found["networks"].keys()
        assert set(service.get("depends_on", [])) <= found["services"].keys()
        assert set(service.get("secrets", [])) <= found["secrets"].keys()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), volume
            elif not source.startswith("${"):
                assert source in found["volumes"], volume


def test_the_commands_in_the_files_exist() -> None:
    """The options of `clipmill serve` in compose, systemd and Kubernetes are options that it has."""
    from pipelines.serve_cli import cluster_command, serve_command

    known = {option for each in (serve_command, cluster_command) for p in each.params for option in p.opts}
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["serve"]["command"]
    units = " ".join(path.read_text() for path in (DEPLOY / "systemd").glob("*.service"))
    units = " ".join(line for line in units.splitlines() if line.startswith("ExecStart"))
    args = [c["args"] for path in MANIFESTS for r in documents(path) for pod in pods(r)
            for c in pod["spec"]["containers"] if "args" in c]  # fmt: skip
    words = [*compose, *units.split(), *[each for one in args for each in one]]
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used
    assert used <= known


def test_prometheus_accepts_its_configuration() -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.fail("no promtool: apt-get install prometheus (deploy/system-packages.sh does it)")
    result = subprocess.run([promtool, "check", "config", DEPLOY / "prometheus.yml"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_systemd_accepts_its_units() -> None:
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.fail("no systemd-analyze: apt-get install systemd (deploy/system-packages.sh does it)")
    units = sorted((DEPLOY / "systemd").glob("*.service"))
    result = subprocess.run([analyze, "verify", *units], capture_output=True, text=True)
    said = [line for line in result.stderr.splitlines() if "clipmill" in line and "is not executable" not in line]
    assert said == []


def test_grafana_dashboard_is_whole() -> None:
    found = json.loads((DEPLOY / "grafana" / "clipmill.json").read_text())
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    source = documents(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml")[0]["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in found["panels"]} == {source["uid"]}
    taken = set()
    for panel in found["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
