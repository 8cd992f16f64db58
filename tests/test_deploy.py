"""The files for Kubernetes, against KubeRay's definitions of its objects and their pods, and what the files name."""

import copy
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tyro
import yaml
from test_cluster_yaml import unknown_keys

from jobs import speedrun

REPO = Path(__file__).parent.parent
DEPLOY = REPO / "deploy"
MANIFESTS = ["rayjob.yaml", "rayservice.yaml"]
KUBERAY = "github.com/ray-project/kuberay/ray-operator@v1.5.0"
KUBERAY_SUM = "h1:KCjCQ7PSsvs9Ke+90CZbbs498nuaIJ/JkXk4vd54EVg="
# Objects' own names are no part of the definitions: RFC 1123, with room for what KubeRay adds.
NAME = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?$"}

Check = Callable[[Any], None]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """Return what raises where a manifest, with the pods that it is a template of, is not what KubeRay defines.

    Its custom resource definitions are in the Go module of its operator.
    """
    if (go := shutil.which("go")) is None:
        pytest.skip("needs Go, whose module of KubeRay has the definitions of RayJob and RayService")
    cache = {"GOMODCACHE": str(tmp_path_factory.mktemp("go")), "GOFLAGS": "-modcacherw"}
    ours = {"GOSUMDB": "off", "GOTOOLCHAIN": "local"}  # the sum is compared here
    found = subprocess.run(
        [go, "mod", "download", "-json", KUBERAY], env=os.environ | cache | ours, capture_output=True, text=True
    )
    if found.returncode:
        pytest.skip(f"the module {KUBERAY} could not be downloaded: {found.stdout[-500:]}{found.stderr[-500:]}")
    module = json.loads(found.stdout)
    assert module["Sum"] == KUBERAY_SUM
    folder = Path(module["Dir"], "config", "crd", "bases")
    schemas = {kind: schema_of(folder / f"ray.io_{kind.lower()}s.yaml") for kind in ("RayJob", "RayService")}
    validators = {kind: jsonschema.Draft202012Validator(schema) for kind, schema in schemas.items()}
    return lambda manifest: validators[manifest["kind"]].validate(manifest)


def schema_of(definition: Path) -> dict[str, Any]:
    """Return the schema of a kind's objects, which have the fields that it names and no others.

    A cluster drops other fields, and `kubectl` refuses them.
    """
    (version,) = [
        v for v in yaml.load(definition.read_text(), yaml.CSafeLoader)["spec"]["versions"] if v["name"] == "v1"
    ]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    close(schema)
    schema["properties"]["metadata"] = {
        "required": ["name"],
        "properties": {"name": NAME},
        "additionalProperties": False,
    }
    return schema


def close(schema: Any) -> None:
    """Let every object of a schema that names its fields have no others."""
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        close(part)
    if isinstance(schema, dict) and isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)


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
def test_manifest_is_what_kuberay_defines(name: str, check: Check) -> None:
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
def test_the_definitions_refuse(name: str, spoil: Callable[[Any], object], check: Check) -> None:
    manifest = copy.deepcopy(read(name))
    spoil(manifest)
    with pytest.raises(jsonschema.ValidationError):
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
