"""Judge Python that a model wrote, by tests that it cannot see. Standard library only.

The program runs in process A, the tests in process B (`sandbox_child.py`). B calls A's function; only literals cross,
so a result is a number, a string, a list, ..., never an object that claims to equal everything. A holds no tests, no
expected values and no way to report that they passed.

What holds on Linux for both processes (`sandbox_locks.py`; `guards()` lists what is in force):
- time: wall clock and CPU seconds; memory: address space; at most 64 threads and 64 open files;
- system calls (seccomp): only what plain Python needs, so no sockets, no other process, no signals;
- paths (Landlock): both read the libraries of Python and the system; neither reads your home, /etc or /proc;
- writes: A has a tmpfs of 16 MiB of its own where the system permits the mount, else no place to write to;
- inheritance: an empty environment, no other file descriptors, no capabilities, no site-packages.

Where gVisor's `runsc` works, A runs in a container of its own (`gvisor.py`), which needs no Landlock: with another
kernel, libraries mounted read-only, no network, and nothing else of this machine but the two pipes. Its threads are
not counted: its address space and CPU time limit them, and the memory that gVisor's kernel keeps for them is limited.

What does not hold: without gVisor a kernel bug is a way out. Where gVisor is missing, and Landlock or seccomp too
(macOS, Linux before 6.2, some containers), `judge` refuses, unless the variable RAYCHAT_ALLOW_OPEN_SANDBOX is set.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

REQUIRED = frozenset({"landlock", "seccomp"})
GVISOR = "gvisor"  # is enough by itself
ALLOW_OPEN = "RAYCHAT_ALLOW_OPEN_SANDBOX"  # a property of a machine, such as one in a network of its own
START = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import sandbox_child; sandbox_child.main()"
GRACE_S = 60.0  # for the processes to start and end on a busy machine


class Outcome(NamedTuple):
    """The result of the tests; `error` is None exactly when all passed."""

    error: str | None = None  # "AssertionError: ...", "timed out after 5 s", "the program was killed by SIGSEGV", ...
    guards: tuple[str, ...] = ()  # protections in force: rlimit_*, no_new_privs, landlock, seccomp, tmpfs, gvisor

    @property
    def passed(self) -> bool:
        return self.error is None


def judge(program: str, tests: str, name: str, *, timeout_s: float = 5.0, memory_bytes: int = 256 << 20) -> Outcome:
    """Run tests that call a program's function `name`; never raise for what the program did.

    Arguments and results keep their built-in types (1 is not True, a tuple is not a list), but an argument that the
    function changes stays as it was for the tests. An exception keeps its type if it is a built-in one.

    Args:
        program: source code, not trusted; it has no access to `tests`.
        tests: source code, trusted; passes if it runs to its end.
        timeout_s: wall time; CPU time of each process is limited to the next whole second above a third of it.
        memory_bytes: address space of each process, including the interpreter's own ~30 MB.

    Raises:
        ValueError: this machine lacks protections.

    >>> judge("def double(x): return 2 * x", "assert double(4) == 8", "double").passed
    True
    >>> judge("def double(x): return x", "assert double(4) == 8, 'wrong'", "double").error
    'AssertionError: wrong'
    """
    guards()
    return _judge(program, tests, name, timeout_s, memory_bytes, runsc())


@functools.cache  # once per process
def guards() -> tuple[str, ...]:
    """Return the protections that hold on this machine. Raises ValueError if they are too few to run programs."""
    outcome, _ = _judge_nothing(runsc())
    if not outcome.passed:
        raise RuntimeError(f"the sandbox does not work on this machine: {outcome.error}")
    missing = lacking(outcome.guards)
    if missing and not os.environ.get(ALLOW_OPEN):
        raise ValueError(
            f"programs that a model wrote run only behind {' and '.join(sorted(REQUIRED))}, and this machine lacks "
            f"{' and '.join(missing)} (it has {', '.join(outcome.guards)}); use Linux 6.2 or newer with both, install "
            f"gVisor's `runsc`, or, on a machine that has nothing to lose, set {ALLOW_OPEN}=1"
        )
    return outcome.guards


def lacking(guards: Collection[str]) -> list[str]:
    """Return which protections are missing: none in gVisor, else those of REQUIRED that are not among `guards`."""
    return [] if GVISOR in guards else sorted(REQUIRED.difference(guards))


@functools.cache  # once per process
def runsc() -> str:
    """Return the path of gVisor's `runsc`; "" where it is not installed, or does not work, which is printed."""
    path = shutil.which("runsc")
    if path is None:
        return ""
    outcome, printed = _judge_nothing(path)
    if outcome.passed:
        return path
    reason = (printed.splitlines() or [str(outcome.error)])[-1]
    print(f"going on without gVisor: {path} does not work on this machine: {reason}", file=sys.stderr, flush=True)
    return ""


@functools.cache
def _judge_nothing(runsc: str) -> tuple[Outcome, str]:
    """Return the outcome of a program that does nothing, and what it printed."""
    with _file("") as errors:
        outcome = _judge("def nothing(): pass", "nothing()", "nothing", GRACE_S, 256 << 20, runsc, errors)
        errors.seek(0)
        return outcome, errors.read().decode(errors="replace").strip()


def _judge(
    program: str,
    tests: str,
    name: str,
    timeout_s: float,
    memory_bytes: int,
    runsc: str,
    errors: IO[bytes] | int = subprocess.DEVNULL,
) -> Outcome:
    with _file(program) as source, _file(tests) as checks:
        # fmt: off
        command = [
            sys.executable, "-I", "-S", "-X", "utf8", "-c", START,
            name, str(checks.fileno()), str(memory_bytes), str(timeout_s), runsc,
        ]
        # fmt: on
        with subprocess.Popen(
            command,
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd="/",
            env={},
            pass_fds=(checks.fileno(),),
            start_new_session=True,  # a process group of its own, which is killed as a whole
        ) as process:
            output = b""
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output, _ = process.communicate(timeout=timeout_s + GRACE_S)
            finally:
                _kill_group(process)
    return _outcome(output)


@contextlib.contextmanager
def _file(text: str) -> Iterator[IO[bytes]]:
    """Yield an open file without a name that holds a text, from its start."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        file.seek(0)
        yield file


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        os.killpg(process.pid, signal.SIGKILL)


def _outcome(output: bytes) -> Outcome:
    report: dict[str, Any] = {"guards": [], "error": "the sandbox was killed"}
    with contextlib.suppress(ValueError):
        report = json.loads(output)
    error = report["error"]
    # lone surrogates would stop whoever writes the error down
    return Outcome(error and error.encode("utf-8", "backslashreplace").decode(), tuple(report["guards"]))
