"""The manifests by Kubernetes' own schemas, each overlay as Kustomize would put it together."""

import copy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
ENTRIES = ["base", "overlays/gpu", "overlays/autoscaled", "kserve"]
CUSTOM = {"ServiceMonitor", "ServingRuntime", "InferenceService"}
KINDS = {
    "base": {"ServiceAccount", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor"},
    "kserve": {"ServingRuntime", "InferenceService"},
}


def change(resource: dict[str, Any], operation: dict[str, Any]) -> None:
    """Apply one operation of a JSON patch (RFC 6902) in place."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    target: Any = resource
    for part in parents:
        target = target[int(part) if isinstance(target, list) else part]
    if isinstance(target, list):
        assert (operation["op"], last) == ("add", "-")
        target.append(operation["value"])
    elif operation["op"] == "remove":
        del target[last]
    else:
        assert operation["op"] == "add" or last in target, f"{operation['path']}: nothing there to replace"
        target[last] = operation["value"]


def render(folder: Path) -> list[dict[str, Any]]:
    """Put an entry together: of Kustomize, what ours use (resources, images' tags, JSON patches)."""
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    assert set(plan) <= {"apiVersion", "kind", "resources", "labels", "images", "patches"}
    resources: list[dict[str, Any]] = []
    for name in plan["resources"]:
        path = folder / name
        resources += render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    resources = copy.deepcopy(resources)
    for patch in plan.get("patches", []):
        text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text(encoding="utf-8")
        (target,) = [r for r in resources if (r["kind"], r["metadata"]["name"]) == tuple(patch["target"].values())]
        for operation in yaml.safe_load(text):
            change(target, operation)
    tags = {image["name"]: image["newTag"] for image in plan.get("images", [])}
    for container in (c for resource in resources for c in containers(resource)):
        name = container["image"].partition(":")[0]
        if name in tags:
            container["image"] = f"{name}:{tags[name]}"
    return resources


def containers(resource: dict[str, Any]) -> list[dict[str, Any]]:
    pod = resource.get("spec", {}).get("template", {}).get("spec") or resource.get("spec", {})
    return [*pod.get("initContainers", []), *pod.get("containers", [])] if isinstance(pod, dict) else []


RENDERED = {entry: render(KUBERNETES / entry) for entry in ENTRIES}


def one(entry: str, kind: str) -> dict[str, Any]:
    (found,) = [resource for resource in RENDERED[entry] if resource["kind"] == kind]
    return found


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_resource_follows_its_schema(entry: str) -> None:
    kinds = {resource["kind"] for resource in RENDERED[entry]}
    assert kinds >= KINDS.get(entry, KINDS["base"])
    for resource in RENDERED[entry]:
        if resource["kind"] not in CUSTOM:
            kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def test_the_validator_refuses_what_is_wrong() -> None:
    wrong = copy.deepcopy(one("base", "Deployment"))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinessProb"):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_container_meets_the_restricted_pod_security_standard(entry: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and a read-only root."""
    found = 0
    for resource in RENDERED[entry]:
        pod = resource.get("spec", {}).get("template", {}).get("spec", {}).get("securityContext", {})
        for container in containers(resource):
            found += 1
            own = container["securityContext"]
            both = pod | own
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert own["readOnlyRootFilesystem"] is True
            assert both["runAsNonRoot"] is True
            assert both["runAsUser"] == 10001
            assert both["seccompProfile"] == {"type": "RuntimeDefault"}
            assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
            assert ":" in container["image"]
    assert found


@pytest.mark.parametrize("entry", ["base", "overlays/gpu", "overlays/autoscaled"])
def test_parts_find_one_another(entry: str) -> None:
    template = one(entry, "Deployment")["spec"]["template"]
    pod_labels = template["metadata"]["labels"].items()
    service = one(entry, "Service")
    assert service["spec"]["selector"].items() <= pod_labels
    assert one(entry, "Deployment")["spec"]["selector"]["matchLabels"].items() <= pod_labels
    assert one(entry, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= pod_labels
    assert one(entry, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= pod_labels
    (container,) = template["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    probes = {key: probe["httpGet"]["port"] for key, probe in container.items() if key.endswith("Probe")}
    assert probes == {"startupProbe": "http", "readinessProbe": "http", "livenessProbe": "operations"}
    assert template["spec"]["serviceAccountName"] == one(entry, "ServiceAccount")["metadata"]["name"]


@pytest.mark.parametrize("entry", ["base", "overlays/gpu", "overlays/autoscaled"])
def test_the_service_monitor_leads_to_the_job_that_the_alerts_ask_for(entry: str) -> None:
    monitor, service = one(entry, "ServiceMonitor"), one(entry, "Service")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    labels = service["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["spec"]["jobLabel"]] == "limbeck"
    names = {port["name"] for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= names


@pytest.mark.parametrize("entry", ["base", "overlays/gpu", "overlays/autoscaled"])
def test_clients_and_prometheus_reach_a_port_each(entry: str) -> None:
    (container,) = one(entry, "Deployment")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {"name": "LIMBECK_OPERATIONS_PORT", "value": str(ports["operations"])} in container["env"]
    let_in = {}
    for rule in one(entry, "NetworkPolicy")["spec"]["ingress"]:
        for peer in rule["from"]:
            let_in[next(iter(peer["podSelector"]["matchLabels"]))] = [port["port"] for port in rule["ports"]]
    assert let_in == {"limbeck-client": ["http"], "app.kubernetes.io/name": ["operations"]}
    (endpoint,) = one(entry, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["port"] == "operations"


def test_a_pod_has_time_to_finish() -> None:
    from service.settings import Settings

    pod = one("base", "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    pause_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause_s + Settings.model_fields["shutdown_timeout_s"].default


def test_the_gpu_overlay_asks_for_a_gpu() -> None:
    (container,) = one("overlays/gpu", "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "limbeck:gpu"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "LIMBECK_PROVIDER", "value": "cuda"} in container["env"]


def test_the_autoscaler_owns_the_number_of_replicas_and_the_adapter_gives_its_metric() -> None:
    assert "replicas" not in one("overlays/autoscaled", "Deployment")["spec"]
    scaler = one("overlays/autoscaled", "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] == one("overlays/autoscaled", "Deployment")["metadata"]["name"]
    asked = {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"] if metric["type"] == "Pods"}
    values = yaml.safe_load((KUBERNETES / "overlays/autoscaled/adapter-values.yaml").read_text(encoding="utf-8"))
    assert asked == {rule["name"]["as"] for rule in values["rules"]["custom"]} == {"limbeck_queue_entries"}


def test_kserve_serves_the_format_that_the_runtime_names() -> None:
    runtime, service = one("kserve", "ServingRuntime"), one("kserve", "InferenceService")
    assert (runtime["apiVersion"], service["apiVersion"]) == ("serving.kserve.io/v1alpha1", "serving.kserve.io/v1beta1")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    formats = [(each["name"], each["version"]) for each in runtime["spec"]["supportedModelFormats"]]
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"
    assert {"name": "LIMBECK_MODEL_FOLDER", "value": "/mnt/models"} in container["env"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_kustomize_puts_the_same_together(entry: str) -> None:
    """So that what is checked above is what a cluster is given."""
    if shutil.which("kubectl") is None:
        pytest.skip("no `kubectl` on this machine, which has Kustomize in it")
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / entry)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    theirs = {resource["kind"]: resource for resource in yaml.safe_load_all(done.stdout)}
    ours = {resource["kind"]: resource for resource in RENDERED[entry]}
    for resource in theirs.values():
        resource["metadata"].get("labels", {}).pop("app.kubernetes.io/part-of", None)
        if not resource["metadata"].get("labels", True):
            del resource["metadata"]["labels"]
    assert theirs == ours
