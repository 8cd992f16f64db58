"""The processes of the sandbox: A runs the program, B runs the tests, and this one, their parent, watches both.

`sandbox.judge` starts `main` with the standard library only, so that it starts in milliseconds. Standard input is the
program. Arguments: the function's name, the tests' file descriptor, memory in bytes, time in seconds, the path of
gVisor's `runsc`, in which A runs, or nothing.
Standard output gets {"guards": [...], "error": text or null}.

B calls the program's function over two pipes of JSON lines. Only literals cross. A is forked before anything reads the
tests, and B alone reports whether they passed, so nothing in A knows what is expected or can say that it was met.
"""

import builtins
import contextlib
import functools
import json
import math
import os
import select
import signal
import sys
import time
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import gvisor  # type: ignore[import-not-found]
import sandbox_locks as locks  # type: ignore[import-not-found]

MAX_ANSWER_BYTES = 4 << 20
MAX_ERROR_CHARS = 2000
MAX_THREADS = 64
POLL_MS = 20  # between looks at the clock and the number of threads
ENDED = "the program ended before it answered"
NOT_STARTED = "the program was not started"


def pack(value: Any) -> Any:
    """Return a literal in JSON's types; what JSON lacks becomes {type: content}. Raises TypeError for other values.

    A subclass becomes the built-in type that it equals: a Counter is a dict, a named tuple is a tuple.
    """
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 64 else {"int": hex(value)}  # decimal digits are limited and slow
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[pack(key), pack(item)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [pack(item) for item in value]}
    raise TypeError(f"expected a literal, got {type(value).__name__}")


_KINDS: dict[str, Callable[[Any], Any]] = {
    "int": lambda digits: int(digits, 16),
    "dict": dict,
    "bytes": bytes.fromhex,
    "complex": lambda parts: complex(*parts),
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}


def unpack(value: Any) -> Any:
    """Return the literal that `pack` packed. Raises an exception of some kind for what `pack` never makes."""
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if isinstance(value, dict):
        [(kind, content)] = value.items()
        return _KINDS[kind](unpack(content))
    return value


def describe(problem: BaseException) -> tuple[str, str]:
    """Return an exception's type and message."""
    try:
        text = str(problem)
    except BaseException:  # its __str__ may be the program's
        text = ""
    return type(problem).__name__, text[:MAX_ERROR_CHARS]


def new_module(name: str) -> dict[str, Any]:
    """Return the globals of a new module, in sys.modules for dataclasses and others that look it up there."""
    module = sys.modules[name] = types.ModuleType(name)
    return module.__dict__


def execute(source: bytes, scope: dict[str, Any]) -> None:
    exec(compile(source.decode("utf-8", "surrogatepass"), f"<{scope['__name__']}>", "exec"), scope)


def answer_calls(name: str, calls: int, answers: int, limits: tuple[int, int], inside: str = "") -> None:
    """Be process A: run the program of standard input, then its function for each line of `calls`.

    Args:
        inside: the container that it runs in, whose folder to write to is mounted; "" = none.
    """
    source, program = sys.stdin.buffer.read(), new_module("program")
    folder = locks.FOLDER if inside else locks.own_folder()
    guards = [*locks.lock_in(*limits, folder), *["tmpfs"] * (folder is not None), *[inside] * bool(inside)]

    def outcome(action: Callable[..., Any], *args: Any) -> str:
        try:
            return json.dumps({"value": pack(action(*args))})
        except BaseException as problem:
            return json.dumps({"error": describe(problem)})

    with os.fdopen(answers, "w") as out, os.fdopen(calls) as lines:
        print(json.dumps(guards), file=out, flush=True)
        print(outcome(execute, source, program), file=out, flush=True)
        for line in lines:
            args, kwargs = unpack(json.loads(line))
            print(outcome(lambda a, k: program[name](*a, **k), args, kwargs), file=out, flush=True)


def revive(name: str, message: str) -> Exception:
    """Return the exception that the program raised, if it is a built-in one, else a RuntimeError that names it."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):  # a few need more than a message
            return kind(message)
    return RuntimeError(f"{name}: {message}")


def answer_in_gvisor(runsc: str, name: str, calls: int, answers: int, limits: tuple[int, int]) -> None:
    """Be process A in a container."""
    gvisor.run(runsc, f"{gvisor.START}answer_calls({name!r}, 3, 4, {limits!r}, 'gvisor')", (calls, answers))


def examine(name: str, calls: int, answers: int, tests: int, report: int, limits: tuple[int, int]) -> None:
    """Be process B: run the tests, in which the function's name calls the program, and report."""
    guards: list[str] = []

    def end(error: str | None) -> NoReturn:
        os.write(report, json.dumps({"guards": guards, "error": error}).encode())
        os._exit(0)

    def reply() -> Any:
        line = lines.readline(MAX_ANSWER_BYTES)
        if not line.endswith(b"\n"):
            ended = ENDED if guards else NOT_STARTED
            end(ended if len(line) < MAX_ANSWER_BYTES else f"an answer is longer than {MAX_ANSWER_BYTES} bytes")
        return json.loads(line)

    def result() -> Any:
        got = reply()
        if "error" in got:
            raise revive(*got["error"])
        return unpack(got["value"])

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            requests.write(json.dumps(pack([args, kwargs])) + "\n")
            requests.flush()
        except BrokenPipeError:
            end(ENDED)
        return result()

    with os.fdopen(tests, "rb") as file, os.fdopen(calls, "w") as requests, os.fdopen(answers, "rb") as lines:
        source, scope = file.read(), new_module("tests")
        scope[name] = call
        try:
            guards += reply()  # A sends them before it looks at the program
            locks.lock_in(*limits, None)
            result()  # of loading the program
            execute(source, scope)
        except BaseException as problem:
            end(": ".join(filter(None, describe(problem))))
        end(None)


def fork(close: Sequence[int], role: Callable[..., None], *args: Any) -> int:
    """Run `role` in a new process without the file descriptors in `close`; return its id."""
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(2, 1)  # standard output is the verdict's
            for fd in close:
                os.close(fd)
            role(*args)
        except OSError as problem:  # for `sandbox.runsc`, which prints why gVisor does not work
            os.write(2, f"{problem}\n".encode())
        finally:
            os._exit(1)
    return pid


def num_threads(pid: int) -> int:
    """Return how many threads a process has; 0 where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[17])
    except OSError:
        return 0


def watch(report: int, counted: int | None, timeout_s: float) -> dict[str, Any]:
    """Return process B's report, or one of why the program was stopped; count the threads of the process `counted`."""
    deadline = time.monotonic() + timeout_s
    poll = select.poll()
    poll.register(report, select.POLLIN)
    while not poll.poll(POLL_MS):
        if time.monotonic() >= deadline:
            return {"guards": [], "error": f"timed out after {timeout_s:g} s"}
        if counted is not None and num_threads(counted) > MAX_THREADS:
            return {"guards": [], "error": f"started more than {MAX_THREADS} threads"}
    with os.fdopen(report, "rb") as file:
        return json.loads(file.read() or b'{"guards": [], "error": "the tests ended without a verdict"}')


def end(program: int, examiner: int) -> int:
    """Kill both processes, wait for all they have started, and return how the program ended, as `waitpid` does."""
    for pid in (program, examiner):
        os.kill(pid, signal.SIGKILL)
    # B sees the pipes' end when `runsc` ends, which holds them too: then it has its exit code, and is not killed
    status = os.waitpid(program, 0)[1]
    with contextlib.suppress(ChildProcessError):
        while True:  # what A's container leaves behind comes to this process, and dies
            os.wait()
    return status


def killed_by(status: int) -> str | None:
    """Return the name of the signal that ended a program or, 128 more, was told by its container; None for SIGKILL."""
    code = os.waitstatus_to_exitcode(status)
    names = {number.value: number.name for number in signal.Signals if number != signal.SIGKILL}
    return names.get(-code if code < 0 else code - 128)


def main() -> None:
    name, tests_fd, memory_bytes, timeout, runsc = sys.argv[1:]
    del sys.argv[1:], sys.path[0]  # the program imports the standard library alone
    locks.die_with_parent()
    locks.adopt_orphans()
    tests, timeout_s = int(tests_fd), float(timeout)
    limits = int(memory_bytes), math.ceil(timeout_s / 3) + 1  # a busy machine still gives a third of a core
    calls, answers = os.pipe(), os.pipe()
    role = functools.partial(answer_in_gvisor, runsc) if runsc else answer_calls
    program = fork((tests, calls[1], answers[0]), role, name, calls[0], answers[1], limits)
    report = os.pipe()  # A has been forked without it
    theirs = (calls[0], answers[1])
    examiner = fork((0, *theirs, report[0]), examine, name, calls[1], answers[0], tests, report[1], limits)
    for fd in (0, *theirs, calls[1], answers[0], tests, report[1]):
        os.close(fd)
    verdict = watch(report[0], None if runsc else program, timeout_s)
    signal_name = killed_by(end(program, examiner))
    if verdict["error"] == ENDED and signal_name:
        verdict["error"] = f"the program was killed by {signal_name}"
    os.write(1, json.dumps(verdict).encode())
    os._exit(0)  # at once, without tidying up
