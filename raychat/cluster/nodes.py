"""Whether every node sees the storage that this process writes to."""

import uuid
from typing import Any

import ray
from ray.exceptions import TaskUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raychat import paths


def check_nodes(storage: str) -> None:
    """Have every node read what this process writes to the storage, before anything is made there.

    Nodes that join later are not known here: `prepare` and the train workers look for themselves.

    Raises:
        ValueError: some nodes do not see it; names them.
    """
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    probe = paths.join(storage, f".tmp-probe-{uuid.uuid4().hex}")
    paths.write_text(probe, probe)
    try:
        looks = [_on_node(node).remote(probe) for node in nodes]
        blind = [address for address, look in zip(nodes.values(), looks, strict=True) if not _sees(look)]
    finally:
        paths.remove(probe)
    if blind:
        raise ValueError(
            f"{len(blind)} of {len(nodes)} nodes ({', '.join(blind)}) do not see what this process writes to "
            f"{storage}; set --cluster.storage-path to a folder or bucket that all nodes share"
        )


def _on_node(node: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(paths.exists).options(num_cpus=0, scheduling_strategy=there)


def _sees(look: Any) -> bool:
    try:
        return bool(ray.get(look))
    except TaskUnschedulableError:  # the node has left meanwhile
        return True
