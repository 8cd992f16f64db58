"""The files that Ray reads, cluster.yaml and serve_config.yaml, against Ray's own schemas."""

import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).parent.parent
CLUSTERS = ["cluster.yaml", "docs/cluster-local.yaml"]


def read(name: str) -> Any:
    return yaml.safe_load((REPO / name).read_text())


@pytest.mark.parametrize("name", CLUSTERS)
def test_cluster_fits_rays_schema(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(read(name)))


def test_rays_schema_refuses_an_unknown_key() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config(read("cluster.yaml") | {"max_wrokers": 3}))


def test_cluster_has_an_8_gpu_head_and_spot_workers() -> None:
    config = read("cluster.yaml")
    kinds = config["available_node_types"]
    head = kinds[config["head_node_type"]]
    spot = [kind for kind in kinds.values() if kind["node_config"]["scheduling"].get("provisioningModel") == "SPOT"]
    assert head["resources"]["GPU"] == 8
    assert "SPOT" not in str(head["node_config"])
    assert len(spot) == 1
    assert spot[0]["max_workers"] > 0
    assert spot[0]["min_workers"] == 0


def test_cluster_holds_64_gpus_and_names_the_fabric_between_them() -> None:
    text, config = (REPO / "cluster.yaml").read_text(), read("cluster.yaml")
    head, spot = config["available_node_types"]["head"], config["available_node_types"]["spot"]
    workers = min(config["max_workers"], spot["max_workers"])
    assert head["resources"]["GPU"] + workers * spot["resources"]["GPU"] == 64
    made = re.search(r"for i in (.*); do .*\n(.*networks create raychat-\$i .*\n)", text)
    assert made
    assert "--mtu=8244" in made[2]  # Google's number for these cards
    for kind in (head, spot):
        cards = kind["node_config"]["networkInterfaces"]
        assert {card["nicType"] for card in cards} == {"GVNIC"}
        networks = [card["subnetwork"].rsplit("/", 1)[1] for card in cards]
        assert networks == ["default", *(f"raychat-{i}" for i in made[1].split())]
        region = config["provider"]["region"]
        assert all(card["subnetwork"].startswith(f"projects/YOUR-PROJECT/regions/{region}/") for card in cards)
        assert ["accessConfigs" in card for card in cards] == [True] + [False] * (len(cards) - 1)


def test_nccl_uses_all_network_cards_but_the_first() -> None:
    (command,) = (command for command in read("cluster.yaml")["setup_commands"] if "/etc/nccl.conf" in command)
    first = "ip() { echo '8.8.8.8 via 10.128.0.1 dev enp0s12 src 10.128.0.5 uid 1000'; }; sudo() { cat; }; "
    written = subprocess.run(["bash", "-c", first + command], capture_output=True, text=True, check=True).stdout
    assert written == "NCCL_SOCKET_IFNAME=^=lo,docker0,enp0s12\n"


@pytest.mark.parametrize("name", CLUSTERS)
def test_cluster_installs_as_the_makefile_does(name: str) -> None:
    config = read(name)
    targets = re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), flags=re.MULTILINE)
    used = re.findall(r"\bmake ([a-z-]+) ", " ".join(config["setup_commands"]) + " ")
    assert "install" in used
    assert set(used) <= set(targets)
    assert ".venv" in config["rsync_exclude"]
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert ".venv/bin/activate" in command


def unknown_keys(value: Any, model: Any, where: str) -> Iterator[str]:
    """Yield the keys of a mapping (and of those in it) that a pydantic model of Ray Serve would silently ignore."""
    from ray.serve import schema
    from ray.serve.config import AutoscalingConfig

    inner = {
        "applications": schema.ServeApplicationSchema,
        "deployments": schema.DeploymentSchema,
        "http_options": schema.HTTPOptionsSchema,
        "logging_config": schema.LoggingConfig,
        "ray_actor_options": schema.RayActorOptionsSchema,
        "autoscaling_config": AutoscalingConfig,
    }
    for key, entry in value.items():
        if key not in model.model_fields:
            yield f"{where}{key}"
        elif key in inner and entry:
            for number, item in enumerate(entry if isinstance(entry, list) else [entry]):
                yield from unknown_keys(item, inner[key], f"{where}{key}[{number}].")


def test_serve_config_fits_rays_schema() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = read("serve_config.yaml")
    assert ServeDeploySchema.model_validate(config).applications
    assert not list(unknown_keys(config, ServeDeploySchema, ""))


def test_unknown_keys_are_found_at_every_level() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = {"applications": [{"name": "x", "deployments": [{"autoscaling_config": {"max_replica": 2}}], "prot": 1}]}
    assert list(unknown_keys(config, ServeDeploySchema, "")) == [
        "applications[0].deployments[0].autoscaling_config[0].max_replica",
        "applications[0].prot",
    ]


def test_serve_config_imports_something_that_is_there() -> None:
    for application in read("serve_config.yaml")["applications"]:
        module, name = application["import_path"].split(":")
        assert hasattr(importlib.import_module(module), name)
