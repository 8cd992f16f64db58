"""What the processes of a cluster get of the driver's variables, and that the user's own settings win."""

import os
from typing import Any

import pytest

from raychat.cluster import Cluster


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what `ray.init` will have been called with."""
    ray = pytest.importorskip("ray")
    called: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **settings: called.update(settings))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(os, "environ", {"PYTORCH_ALLOC_CONF": "max_split_size_mb:512", "HOME": "/somewhere"})
    return called


def test_a_cluster_gets_defaults_and_what_the_user_has_set_and_nothing_else(joined: dict[str, Any]) -> None:
    Cluster(address="ray://head:10001").join()
    variables = joined["runtime_env"]["env_vars"]
    assert joined["address"] == "ray://head:10001"
    assert variables["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:512"
    assert variables["MALLOC_ARENA_MAX"] == "1"
    assert "HOME" not in variables


def test_memory_on_gpus_is_in_segments_that_grow_unless_the_user_says_otherwise(joined: dict[str, Any]) -> None:
    del os.environ["PYTORCH_ALLOC_CONF"]
    Cluster(address="ray://head:10001").join()
    assert joined["runtime_env"]["env_vars"]["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
