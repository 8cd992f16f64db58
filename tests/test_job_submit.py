"""`ray job submit --working-dir .` against a head that `ray start` made, as on any cluster."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from test_cluster_elastic import opened
from test_serve import wait_until

from raychat import checkpoint

REPO = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, away from those that Ray's workers take (10002 to 19999)."""
    ports: list[int] = []
    for port in range(21000 + os.getpid() % 5000, 32000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("no free ports")


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The job API's address of a head of its own; this environment's commands are first on its PATH."""
    gcs, dashboard, agent, metrics, client = free_ports(5)
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: the paths of Ray's sockets are limited
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # end at once, not after the 30 s that running work is given
    }
    options = {
        "port": gcs,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "metrics-export-port": metrics,
        "ray-client-server-port": client,
        "temp-dir": folder,
        "num-cpus": 4,
        "object-store-memory": 256 * 1024**2,
    }
    log = Path(folder) / "start.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [str(BIN / "ray"), "start", "--head", "--block", *(f"--{key}={value}" for key, value in options.items())],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait_for(f"{address}/api/version", process, log)
        yield address
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):  # what is left of the group that we made
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path, timeout_s: float = 90) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.3)
    raise RuntimeError(f"no answer from {url}:\n{log.read_text()}")


def submit(head: str, *command: str, options: Sequence[str] = ()) -> str:
    """Submit the checkout as a job, wait for its end and return what it printed."""
    return ray_job(head, "submit", "--working-dir", ".", *options, "--", *command)


def ray_job(head: str, verb: str, *arguments: str, timeout_s: float = 900) -> str:
    done = subprocess.run(
        [str(BIN / "ray"), "job", verb, f"--address={head}", *arguments],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_job_runs_the_submitted_code_in_the_installed_environment(head: str) -> None:
    program = "import json, os, sys, raychat, jobs; print(json.dumps([sys.executable, raychat.__file__, os.listdir()]))"
    printed = submit(head, "python", "-c", program)
    line = next(line for line in printed.splitlines() if line.startswith("["))
    executable, library, files = json.loads(line)
    assert Path(executable).parent == BIN
    assert Path(library).parent.parent != REPO, "the job imported the checkout, not the copy that was submitted"
    assert {"raychat", "jobs", "tests"} <= set(files)
    assert not {".venv", ".git"} & set(files)


@pytest.mark.long
def test_a_job_that_is_stopped_saves_a_checkpoint_and_the_same_command_continues(head: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "runs" / "test" / "submitted")
    command = ("python", "tests/elastic_driver.py", "submitted", str(tmp_path))
    wait = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}})  # Ray kills the driver after 3 s otherwise
    submit(head, *command, options=["--no-wait", "--submission-id=stopped", f"--runtime-env-json={wait}"])
    assert wait_until(lambda: len(opened(folder)) == 1, timeout_s=900)
    assert "was stopped" in ray_job(head, "stop", "stopped")
    (path,) = checkpoint.all_in(folder)
    assert f"stopped at step {checkpoint.read_meta(path).step} of " in ray_job(head, "logs", "stopped")
    Path(f"{folder}-go").touch()
    submit(head, *command)
    assert [one.start for one in opened(folder)] == [0, checkpoint.read_meta(path).step]
    assert os.path.exists(f"{folder}/summary.json")
