"""The container around a program, without the other guards, and what it leaves behind.

The ordinary and the hostile programs of the other two files of the sandbox run in it, too.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path

import pytest
from conftest import REPO, forget_machine

from raychat.tasks import sandbox, sandbox_locks
from raychat.tasks.sandbox import judge

PATIENT_S = 120.0  # for programs that end by themselves, on a slow and busy machine
in_gvisor = pytest.mark.parametrize("isolation", ["gvisor"], indirect=True)
TASKS = Path(sandbox.__file__).parent


def contain(code: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run code in the container without seccomp and other limits, and code in the process that becomes `runsc`."""
    start = f"import sys; sys.path.insert(0, {str(TASKS)!r}); import gvisor; {before}"
    start += "; gvisor.run(sys.argv[1], sys.argv[2], ())"
    command = [sys.executable, "-c", start, sandbox.runsc(), code]
    with tempfile.TemporaryFile() as program:  # which may be written to
        return subprocess.run(command, stdin=program, capture_output=True, text=True, timeout=PATIENT_S)


def run(code: str) -> str:
    """Return what code prints in the container."""
    done = contain(code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@in_gvisor
def test_gvisor_alone_is_enough(isolation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "REQUIRED", frozenset({"landlock", "a moat"}))
    monkeypatch.delenv(sandbox.ALLOW_OPEN, raising=False)
    forget_machine()
    outcome = judge("def f(x): return 2 * x", "assert f(4) == 8", "f", timeout_s=PATIENT_S)
    assert outcome.passed
    assert outcome.guards[-1] == "gvisor"
    assert {"seccomp", "tmpfs", "no_new_privs", "rlimit_as", "rlimit_cpu"} < {*outcome.guards}
    assert not [guard for guard in outcome.guards if "landlock" in guard]


@in_gvisor
def test_program_has_a_kernel_of_its_own(isolation: str) -> None:
    program = "import os\ndef f(): return os.uname().release"
    tests = f"assert 'gvisor' in f() and f() != {os.uname().release!r}, f()"
    assert judge(program, tests, "f", timeout_s=PATIENT_S).error is None


@in_gvisor
def test_container_has_no_files_but_the_libraries(isolation: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    hidden = ["/etc/passwd", "/proc/1", "/proc/self", "/sys/kernel", str(REPO / "README.md"), str(tmp_path / "file")]
    assert run(f"import os; print([path for path in {hidden} if os.path.exists(path)])") == "[]"
    assert run("import os; print(*sorted(os.listdir('/sandbox')))") == "gvisor.py sandbox_child.py sandbox_locks.py"
    mounted = [*sandbox_locks.libraries(), os.path.realpath(sys.executable), "/etc", "/sandbox"]
    seen = run("import os; print(*os.listdir('/'))").split()
    assert {*seen} <= {path.split("/")[1] for path in mounted} | {"dev", "proc", "sys", "tmp"}


@in_gvisor
def test_container_is_read_only_but_for_one_small_folder(isolation: str) -> None:
    code = """
import os, sys
folders = '/ /dev /dev/shm /dev/pts /etc /lib /proc /sandbox /sys /tmp /usr/lib'.split() + sys.path[1:]
print([folder for folder in folders if os.access(folder, os.W_OK)])
print([folder for folder in folders if os.path.exists(folder) and not os.statvfs(folder).f_flag & os.ST_RDONLY])
written = 0
try:
    for name in range(64):
        with open(f'/dev/shm/{name}', 'wb', buffering=0) as file: written += file.write(bytes(1 << 20))
except OSError as e: print(written >> 20, e.strerror)
try: os.write(0, b'x')  # standard input
except OSError as e: print(e.strerror)
"""
    expected = ["['/dev/shm']", "['/dev/shm']", "16 No space left on device", "Bad file descriptor"]
    assert run(code).splitlines() == expected


@in_gvisor
def test_container_has_no_rights_and_no_network(isolation: str) -> None:
    code = """
import ctypes, os, socket
print(os.getuid(), os.getgid(), ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))  # PR_GET_NO_NEW_PRIVS
try: os.setuid(0)
except OSError as e: print(e.strerror)
for family, address in ((socket.AF_INET, ('127.0.0.1', PORT)), (socket.AF_UNIX, '\\0NAME')):
    try: print(socket.socket(family).connect(address))
    except OSError as e: print(e.strerror)
"""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        name = f"raychat-{os.getpid()}"
        local.bind(f"\0{name}")
        local.listen()
        printed = run(code.replace("PORT", str(server.getsockname()[1])).replace("NAME", name))
    refused = "Connection refused"
    assert printed.splitlines() == ["65534 65534 1", "Operation not permitted", refused, refused]


@in_gvisor
@pytest.mark.parametrize(
    "bomb",
    [
        "threading.Thread(target=time.sleep, args=(10**6,), daemon=True).start()",
        "kept.append(mmap.mmap(-1, 4096, prot=1 + len(kept) % 2 * 2))",
        "os.mkdir(str(len(kept))); kept.append(0)",
    ],
)
def test_memory_and_time_limit_what_nothing_counts(isolation: str, bomb: str) -> None:
    program = f"import mmap, os, threading, time; kept = []; threading.stack_size(32 << 10)\nwhile True: {bomb}"
    error = judge(program, "", "f", timeout_s=15.0).error
    # Which is met first depends on the machine: address space, CPU time, memory of the container's kernel, the clock.
    limits = (
        "RuntimeError: can't start",
        "OSError: [Errno 12]",
        "the program was killed",
        "the program ended",
        "timed out",
    )
    assert error is not None
    assert error.startswith(limits), error
    assert judge("def f(): return 1", "assert f() == 1", "f", timeout_s=PATIENT_S).passed


@in_gvisor
@pytest.mark.parametrize(("megabytes", "fits"), [(1024, True), (192, False)])
def test_memory_of_the_containers_kernel_is_limited(isolation: str, megabytes: int, fits: bool) -> None:
    many = "import os\nfor number in range(60_000): os.mkdir(f'/dev/shm/{number}' + 40 * '-')\nprint('done')"
    done = contain(many, f"gvisor.KERNEL_HEAP_BYTES = {megabytes} << 20")
    assert ("done" in done.stdout) == fits, done.stderr


@in_gvisor
def test_killed_judge_leaves_nothing(isolation: str, tmp_path: Path) -> None:
    script = """
import ctypes, os, signal, subprocess, sys, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans of this process become its children
endless = "from raychat.tasks.sandbox import judge; judge('while True: pass', '', 'f', timeout_s=1000)"
judging = subprocess.Popen([sys.executable, "-c", endless])

def judging_runs_a_container():
    parents, containers = {}, []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(pid)] = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
            if open(f"/proc/{pid}/cmdline").read().startswith("runsc-sandbox"): containers.append(int(pid))
        except OSError: pass
    for pid in containers:
        while pid in parents and pid != judging.pid: pid = parents[pid]
        if pid == judging.pid: return True

for _ in range(20):  # a second or more: the first container only tries whether gVisor works
    while not judging_runs_a_container(): time.sleep(0.05)
    time.sleep(0.05)
os.kill(judging.pid, signal.SIGKILL)
ended = 0
try:
    while os.wait(): ended += 1  # waits for ever if one of them survives
except ChildProcessError: print(ended)
"""

    def left() -> set[str]:
        folders = ("/tmp", "/dev/shm", "/dev", "/var")
        return {path for folder in folders for name in ("config.json", "runsc") for path in glob(f"{folder}/*/{name}")}

    before = left()
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENT_S)
    assert int(done.stdout) >= 6, done.stderr  # judge, parent, tests, and runsc with its kernel and its file server
    assert list(tmp_path.iterdir()) == []
    assert left() <= before


@in_gvisor
def test_machine_without_user_namespaces_judges_without_gvisor(isolation: str) -> None:
    script = "from raychat.tasks import sandbox; print(sandbox.judge('def f(): pass', 'f()', 'f', timeout_s=60))"
    shell = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$0" -c "$1"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", shell, sys.executable, script]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENT_S)
    assert done.stdout.startswith("Outcome(error=None"), done
    assert "gvisor" not in done.stdout
    assert re.fullmatch(
        r"going on without gVisor: .*runsc does not work .*: this system permits no mount.*\n", done.stderr
    )


def test_runsc_that_does_not_work_is_told_once_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runsc").write_text("#!/bin/sh\necho starting >&2\necho no luck today >&2\nexit 1\n")
    (tmp_path / "runsc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    forget_machine()
    for _ in range(2):
        assert judge("def f(x): return 2 * x", "assert f(4) == 8", "f", timeout_s=PATIENT_S).passed
    assert "gvisor" not in sandbox.guards()
    assert capsys.readouterr().err.count("no luck today") == 1
    forget_machine()
