"""The environment of Ray Serve, as a shell gets it."""

import os
import subprocess
import sys

import pytest

from raychat.serve.transport import _VARIABLES, statistics_ports

COMMAND = f'eval "$({sys.executable} -m raychat.serve.transport)" && env -0'


def shell_environment(**own: str) -> dict[str, str]:
    """Return the environment of a shell that has these variables and evaluates what the module prints."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_SERVE_")}
    done = subprocess.run(["bash", "-c", COMMAND], env=inherited | own, capture_output=True, check=True, text=True)
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if line)


def test_a_shell_gets_every_variable_and_ports_that_differ() -> None:
    found = shell_environment()
    assert {key: found[key] for key in _VARIABLES} == _VARIABLES
    assert "\n" in found["RAY_SERVE_HAPROXY_RETRY_ON"]
    assert found["RAY_SERVE_HAPROXY_STATS_PORT"] != found["RAY_SERVE_HAPROXY_METRICS_PORT"]


def test_what_the_user_has_set_stays() -> None:
    own = {"RAY_SERVE_HAPROXY_RETRIES": "2", "RAY_SERVE_HAPROXY_STATS_PORT": "8404", "RAY_SERVE_ENABLE_HA_PROXY": "0"}
    found = shell_environment(**own)
    assert own.items() <= found.items()


def test_statistics_are_on_ports_of_haproxy_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_SERVE_HAPROXY_METRICS_PORT", raising=False)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", "1234")
    for enabled, ports in (("0", []), ("1", [1234, 9101])):
        monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", enabled)
        assert statistics_ports() == ports
