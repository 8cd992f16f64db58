"""The files for Kubernetes, against the schemas of KubeRay's objects and of Kubernetes' pods, and what they name."""

import copy
import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import tyro
import yaml
from test_cluster_yaml import unknown_keys

from jobs import speedrun

REPO = Path(__file__).parent.parent
DEPLOY = REPO / "deploy"
MANIFESTS = ["rayjob.yaml", "rayservice.yaml"]
KUBERNETES = "1.37"


def only(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """Return the JSON schema of an object with these fields and no others."""
    properties = required | optional
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


# The fields of ray.io/v1 that are used, as in KubeRay's custom resource definitions. Pods have a schema of their own.
TEXT, FLAG = {"type": "string"}, {"type": "boolean"}
INT32 = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXTS = {"type": "object", "additionalProperties": TEXT}
GROUP = {"rayStartParams": TEXTS, "template": {"type": "object"}}
WORKERS = only({"groupName": TEXT, "minReplicas": INT32, "maxReplicas": INT32, **GROUP}, replicas=INT32)
CLUSTER = only(
    {"headGroupSpec": only(GROUP)},
    workerGroupSpecs={"type": "array", "items": WORKERS},
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
)
SPECS = {
    "RayJob": only(
        {"entrypoint": TEXT},
        rayClusterSpec=CLUSTER,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        backoffLimit=INT32,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=INT32,
    ),
    "RayService": only({}, serveConfigV2=TEXT, rayClusterConfig=CLUSTER),
}
NAME = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?$"}


def check(manifest: Any) -> None:
    """Check a manifest, and every pod that it is a template of."""
    fields = {"apiVersion": {"const": "ray.io/v1"}, "kind": TEXT, "metadata": only({"name": NAME})}
    jsonschema.validate(manifest, only(fields | {"spec": SPECS[manifest["kind"]]}))
    for group in groups_of(cluster_of(manifest)):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def cluster_of(manifest: Any) -> Any:
    return manifest["spec"].get("rayClusterSpec") or manifest["spec"]["rayClusterConfig"]


def groups_of(cluster: Any) -> list[Any]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def container(group: Any) -> Any:
    (only,) = group["template"]["spec"]["containers"]
    return only


def workdir() -> str:
    found = re.search(r"^WORKDIR (\S+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_fits_the_schemas(name: str) -> None:
    manifest = read(name)
    check(manifest)
    for group in cluster_of(manifest)["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda manifest: manifest["spec"].update(entrypiont="python"),
        lambda manifest: manifest["metadata"].update(name="Ray_chat"),
        lambda manifest: groups_of(cluster_of(manifest))[1].update(minReplicas="1"),
        lambda manifest: groups_of(cluster_of(manifest))[1].pop("groupName"),
        lambda manifest: groups_of(cluster_of(manifest))[0]["rayStartParams"].update({"num-cpus": 0}),
        lambda manifest: groups_of(cluster_of(manifest))[0]["template"]["spec"].update(nodeSelectr={}),
        lambda manifest: container(groups_of(cluster_of(manifest))[1]).pop("name"),
        lambda manifest: container(groups_of(cluster_of(manifest))[1])["resources"].update(limit={}),
    ],
)
def test_the_schemas_refuse(name: str, spoil: Callable[[Any], object]) -> None:
    manifest = copy.deepcopy(read(name))
    spoil(manifest)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(manifest)


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_run_the_image_with_the_tested_ray(name: str) -> None:
    cluster = cluster_of(read(name))
    assert f"ray=={cluster['rayVersion']}" in (REPO / "constraints.txt").read_text().splitlines()
    assert {container(group)["image"] for group in groups_of(cluster)} == {"REGISTRY/raychat"}
    assert "-t REGISTRY/raychat " in (DEPLOY / "Dockerfile").read_text()
    for group in groups_of(cluster):
        resources = container(group)["resources"]
        assert (
            resources["requests"] == resources["limits"]
        )  # a GPU cannot be overcommitted, a killed worker costs steps


def test_job_is_a_speedrun_that_its_gpus_can_run() -> None:
    spec = read("rayjob.yaml")["spec"]
    python, script, *options = shlex.split(spec["entrypoint"])
    assert python == "python"
    assert (REPO / Path(script).relative_to(workdir())).samefile(speedrun.__file__)
    args = tyro.cli(speedrun.Args, args=options)
    gpus = [group["replicas"] * container(group)["resources"]["limits"]["nvidia.com/gpu"] for group in workers(spec)]
    assert args.cluster.max_workers == sum(gpus)
    assert args.cluster.storage_path == "gs://BUCKET/raychat"


def workers(spec: Any) -> list[Any]:
    return list(spec["rayClusterSpec"]["workerGroupSpecs"])


def test_service_serves_the_application() -> None:
    from ray.serve.schema import ServeDeploySchema

    from raychat.cluster.serve import ServeArgs
    from raychat.serve.settings import API_KEYS_VARIABLE, is_loopback

    manifest = read("rayservice.yaml")
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    assert ServeDeploySchema.model_validate(config).applications
    assert not list(unknown_keys(config, ServeDeploySchema, ""))
    (application,) = config["applications"]
    module, name = application["import_path"].split(":")
    assert hasattr(importlib.import_module(module), name)
    settings = ServeArgs.model_validate(application["args"])
    (group,) = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (settings.min_replicas, settings.max_replicas) == (group["minReplicas"], group["maxReplicas"])
    assert settings.gpus_per_replica == container(group)["resources"]["limits"]["nvidia.com/gpu"]
    assert settings.cpus_per_replica <= int(container(group)["resources"]["limits"]["cpu"])
    assert not is_loopback(config["http_options"]["host"])
    for pod in groups_of(cluster_of(manifest)):  # without keys such a host is refused
        assert API_KEYS_VARIABLE in {variable["name"] for variable in container(pod)["env"]}


def test_image_is_made_of_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    targets = re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE)
    assert "make install" in text
    assert "install" in targets
    (extras,) = re.findall(r"-e '\.\[(.*)\]'", text)
    pyproject = (REPO / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", pyproject, re.MULTILINE) for extra in extras.split(","))
    assert f"ENV PATH={workdir()}/.venv/bin:$PATH" in text
    assert ".venv" in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
