"""Run Python that a model wrote in a process of its own, with limits. Standard library only.

What holds on Linux (`Outcome.guards` lists what was in force):
- time: the parent limits wall clock, the kernel limits CPU seconds; the whole process group is killed;
- memory: address space (RLIMIT_AS);
- files: 1 MiB per file, 64 open, 64 MiB and 1,000 names in total (checked every 50 ms);
- system calls (seccomp): only what plain Python needs, so no sockets, no second process or thread, no signals;
- paths (Landlock): the program reads the libraries of Python and the system, and writes to an empty folder of its own,
  which is removed afterwards; it reads neither your home nor /etc nor /proc;
- inheritance: an empty environment, no standard input, no other file descriptors, no capabilities, no site-packages.

What does not hold: it is not a virtual machine, so a kernel bug is a way out. The program shares its interpreter with
the few lines that judge it: a program that ends early never passes, but one written against this file could forge its
verdict. Without seccomp (macOS, some containers) the network is open, and a warning says so.
"""

import contextlib
import functools
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import IO, NamedTuple

MAX_OUTPUT_BYTES = 64 << 10
MAX_FOLDER_BYTES = 64 << 20
MAX_FOLDER_NAMES = 1000
POLL_S = 0.05
CHILD = Path(__file__).with_name("sandbox_child.py")


class Outcome(NamedTuple):
    """The result of a program; `error` is None exactly when it passed."""

    passed: bool  # it ran to its last line without an exception
    stdout: str  # its first 64 KiB
    error: str | None = None  # "AssertionError: ...", "timed out after 5 s", "killed by SIGXCPU", ...
    guards: tuple[str, ...] = ()  # protections in force: rlimit_*, no_new_privs, landlock, seccomp


def run(code: str, *, timeout_s: float = 5.0, memory_bytes: int = 256 << 20) -> Outcome:
    """Run `code` as a program; it passes if it runs to its last line without an exception.

    A program that exits early fails, also by `sys.exit(0)`.

    Args:
        timeout_s: wall time; CPU time is limited to the next whole second above it.
        memory_bytes: address space, including the interpreter's own ~30 MB.

    >>> run("print(6 * 7)").stdout
    '42\\n'
    >>> run("assert 1 + 1 == 3, 'sum'").error
    'AssertionError: sum'
    """
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        return _run_in(Path(folder), code, timeout_s, memory_bytes)


def _run_in(folder: Path, code: str, timeout_s: float, memory_bytes: int) -> Outcome:
    program = folder / "program.py"
    try:
        program.write_text(code, encoding="utf-8")
    except UnicodeEncodeError as problem:  # lone surrogates, which Python source cannot hold
        return Outcome(False, "", f"SyntaxError: {problem}")
    nonce = secrets.token_hex(8)
    report_read, report_write = os.pipe()
    # fmt: off
    command = [
        sys.executable, "-I", "-S", "-B", "-X", "utf8", str(CHILD),
        str(program), str(report_write), nonce, str(memory_bytes), str(math.ceil(timeout_s) + 1),
    ]
    # fmt: on
    with os.fdopen(report_read, "rb", buffering=0) as report:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={},
                pass_fds=(report_write,),
                start_new_session=True,  # a process group of its own, which is killed as a whole
                bufsize=0,
            )
        finally:
            os.close(report_write)
        assert process.stdout is not None
        with process.stdout:
            try:
                output, verdict, stopped = _watch(process.stdout, report, folder, timeout_s)
            finally:
                _kill_group(process)
    return _judge(output, verdict, stopped, nonce.encode(), process.returncode)


def _watch(stdout: IO[bytes], report: IO[bytes], folder: Path, timeout_s: float) -> tuple[bytes, bytes, str | None]:
    """Collect both pipes until they end or a limit is hit; return (output, report, why it was stopped or None)."""
    deadline = time.monotonic() + timeout_s
    output, verdict = bytearray(), bytearray()
    stopped = None
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ, (stdout, output))
        selector.register(report, selectors.EVENT_READ, (report, verdict))
        checked = time.monotonic()
        while selector.get_map():
            now = time.monotonic()
            if now >= deadline:
                stopped = f"timed out after {timeout_s:g} s"
                break
            if now >= checked + POLL_S:
                checked = now
                if _too_full(folder):
                    stopped = "wrote too much to its folder"
                    break
            for key, _ in selector.select(min(POLL_S, deadline - now)):
                pipe, kept = key.data
                chunk = pipe.read(1 << 16)
                if not chunk:
                    selector.unregister(pipe)
                kept += chunk[: MAX_OUTPUT_BYTES - len(kept)]
    return bytes(output), bytes(verdict), stopped


def _too_full(folder: Path) -> bool:
    total = names = 0
    for root, folders, files in os.walk(folder):
        names += len(folders) + len(files)
        for name in files:
            with contextlib.suppress(OSError):  # the program has removed it
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
        if total > MAX_FOLDER_BYTES or names > MAX_FOLDER_NAMES:
            return True
    return False


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the group, then reap its leader: until then no other process can have its id."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _judge(output: bytes, verdict: bytes, stopped: str | None, nonce: bytes, returncode: int) -> Outcome:
    first, _, rest = verdict.partition(b"\n")  # the child writes its guards, then, after the program, nonce and error
    guards = tuple(first.decode().split())
    if guards and "seccomp" not in guards:
        _warn_open()
    if rest.startswith(nonce):
        error = rest.removeprefix(nonce).decode("utf-8", errors="replace") or None
    elif stopped is None and returncode < 0 and returncode != -signal.SIGKILL:
        error = f"killed by {signal.Signals(-returncode).name}"
    else:
        error = stopped or "ended before its last line"
    return Outcome(error is None, output.decode("utf-8", errors="replace"), error, guards)


@functools.cache  # once per process
def _warn_open() -> None:
    warnings.warn(
        "this system has no seccomp filter for the sandbox: programs that a model wrote can open sockets and start "
        "processes; run such evaluations in a container without network",
        RuntimeWarning,
        stacklevel=2,
    )
