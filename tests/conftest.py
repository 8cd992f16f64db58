"""What all tests share: settings for small machines, a fresh RAYCHAT_HOME per test, one Ray cluster per session."""

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import pytest
from chromium import find_chromium, launch

from raychat.serve.transport import set_environment

REPO = Path(__file__).parent.parent

# Read by Ray in every process it starts, and by torch when it is first imported: so they are set before either.
SETTINGS = {
    "OMP_NUM_THREADS": "1",  # as in Ray's workers: same sums in every process, and no fight over few cores
    "RAY_AUTH_MODE": "disabled",  # a cluster of this machine only; do not write a token to the home folder
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how late a finished or dead worker is noticed; default 2 s
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else what workers print shows twice
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",  # default 32 actors for every parquet read
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # an application that is deleted is gone at once
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "RAYCHAT_ALLOW_OPEN_SANDBOX": "1",  # the suite also runs on kernels without Landlock; attacks are skipped there
    "WANDB_MODE": "disabled",  # a run costs seconds; the tests of log.py say offline themselves
    "WANDB_SILENT": "true",
}
for key, value in SETTINGS.items():
    os.environ.setdefault(key, value)
set_environment()
os.environ.pop("RAY_ADDRESS", None)  # tests run on their own cluster, whatever else is running


def pytest_configure() -> None:
    import torch  # after the settings

    # On a CPU with AMX Muon's products would be in bf16, which rounds other workers' sums to other updates.
    os.environ["RAYCHAT_DTYPE"] = "" if torch.cuda.is_available() else "float32"


@functools.cache
def has_network() -> bool:
    try:
        urllib.request.urlopen("https://huggingface.co/robots.txt", timeout=5).close()
    except OSError:
        return False
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("ray") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))  # processes start, slowly on a busy machine


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
    if item.get_closest_marker("network") and not has_network():
        pytest.skip("needs the internet")


@pytest.fixture(autouse=True)
def raychat_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder that everything the test writes goes to; RAYCHAT_HOME points there."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("RAYCHAT_HOME", str(home))
    monkeypatch.setenv("WANDB_DIR", str(home))
    return home


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[dict[str, str]]:
    """Variables that lead to a server of this machine that answers like S3: moto's."""
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


@pytest.fixture
def bucket(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new bucket on moto's server; this process's environment leads there."""
    for key, value in s3_environment.items():
        monkeypatch.setenv(key, value)
    name = f"raychat-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of this machine with 8 logical CPUs, started by the first test that asks, for all of them."""
    import ray

    for attempts_left in (2, 1, 0):
        # Ray's sockets lie in this folder, and their paths may have about 100 characters: not pytest's long tmp_path.
        folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        try:
            ray.init(
                address="local",
                num_cpus=8,
                include_dashboard=True,  # Ray Train's helpers ask it whether their controller lives, and end with it
                log_to_driver=False,  # or their lines get into what another test captures
                object_store_memory=512 * 1024**2,
                _temp_dir=folder,
            )
            break
        except Exception as error:  # its raylet gives its agent a fixed time to come up, too short on a busy machine
            ray.shutdown()
            if "timed out during startup" not in str(error) or not attempts_left:
                raise
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with samples of the real data sets that lies beside some checkouts (shared/data)."""
    folder = REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data sets in {folder}")
    return folder


# What a machine must permit for `raychat/tasks/gvisor.py`, with a container that is not its own.
TRY_GVISOR = f"""
import os, resource, sys
sys.path.insert(0, {str(REPO / "raychat" / "tasks")!r})
import gvisor
if gvisor.locks.own_folder(may_execute=True) is None: sys.exit("no mount in a user namespace of its own")
resource.setrlimit(resource.RLIMIT_DATA, (gvisor.KERNEL_HEAP_BYTES, gvisor.KERNEL_HEAP_BYTES))
os.execlp("runsc", "runsc", "--rootless", "--network=none", "--ignore-cgroups", "--root=state", "do", "true")
"""


@pytest.fixture(scope="module", params=["processes", "gvisor"])
def isolation(request: pytest.FixtureRequest) -> Iterator[str]:
    """How `sandbox.judge` isolates programs: in "processes", gVisor is hidden; in "gvisor", skipped without it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "gvisor":
            if not shutil.which("runsc"):
                pytest.skip("needs gVisor: runsc on the PATH")
            done = subprocess.run([sys.executable, "-c", TRY_GVISOR], capture_output=True, text=True, timeout=60)
            if done.returncode:
                pytest.skip(f"runsc does not work on this machine: {done.stderr}")
        else:
            patch.setenv("PATH", os.devnull)
        sandbox = forget_machine()
        assert bool(sandbox.runsc()) == (request.param == "gvisor")
        yield request.param
    forget_machine()


def forget_machine() -> ModuleType:
    """Let `sandbox` look anew at what protections there are; return it."""
    from raychat.tasks import sandbox  # imports numpy: after the settings

    for cached in (sandbox.runsc, sandbox.guards, sandbox._judge_nothing):
        cached.cache_clear()
    return sandbox


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    path = find_chromium()
    if path is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        browser = launch(started, path)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A window with an empty storage; no script may fail in it, and it may ask no other server for anything."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.set_default_timeout(60_000)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda asked: re.match(r"http://127\.0\.0\.1:|blob:", asked.url) or errors.append(asked.url))
    yield page
    context.close()
    assert not errors
