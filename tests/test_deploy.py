"""The files for Kubernetes: structure, and that what they name is there. The operator's own schema is not at hand."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml
from test_cluster_yaml import unknown_keys

from jobs import speedrun

REPO = Path(__file__).parent.parent
DEPLOY = REPO / "deploy"
MANIFESTS = ["rayjob.yaml", "rayservice.yaml"]
# Fields of ray.io/v1 that are used, and what is required of each object (KubeRay's Go types of that version).
JOB = {"entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"}
FIELDS = {
    "RayJob": JOB | {"rayClusterSpec"},
    "RayService": {"serveConfigV2", "rayClusterConfig"},
    "cluster": {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"},
    "head": {"rayStartParams", "template"},
    "group": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}


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
def test_manifest_has_known_fields_only(name: str) -> None:
    manifest = read(name)
    cluster = cluster_of(manifest)
    assert manifest["apiVersion"] == "ray.io/v1"
    assert re.fullmatch(r"[a-z0-9-]{1,47}", manifest["metadata"]["name"])
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(manifest["spec"]) == FIELDS[manifest["kind"]]
    assert set(cluster) <= FIELDS["cluster"]
    assert set(cluster["headGroupSpec"]) == FIELDS["head"]
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == FIELDS["group"]
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups_of(cluster):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


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
