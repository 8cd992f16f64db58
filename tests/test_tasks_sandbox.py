"""Programs that should not notice the sandbox, and ones that fail in an ordinary way."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from raychat import tasks
from raychat.tasks import sandbox
from raychat.tasks.humaneval import checks
from raychat.tasks.humaneval import program as program_of
from raychat.tasks.sandbox import judge

pytestmark = pytest.mark.usefixtures("isolation")
PATIENT_S = 120.0  # for programs that end by themselves, on a slow and busy machine


def error_of(program: str, tests: str, **limits: Any) -> str | None:
    return judge(program, tests, "f", **{"timeout_s": PATIENT_S} | limits).error


def needs(guard: str) -> None:
    if guard not in sandbox.guards():
        pytest.skip(f"this system has no {guard}")


def test_program_that_meets_its_tests_passes() -> None:
    outcome = judge("def f(x): return 2 * x", "assert f(4) == 8\nassert f(x=1) == 2", "f", timeout_s=PATIENT_S)
    assert outcome.passed
    assert outcome.guards == sandbox.guards()


@pytest.mark.parametrize(
    "program, error",
    [
        ("def f(x): return x", "AssertionError: no double"),
        ("def f(:", "SyntaxError"),
        ("def g(x): return 8", "KeyError"),
        ("def f(): return 8", "TypeError: f() takes 0 positional arguments but 1 was given"),
        ("def f(x): return x + ''", "TypeError: unsupported operand"),
        ("class Own(Exception): pass\ndef f(x): raise Own('oh')", "RuntimeError: Own: oh"),
        ("def f(x): return (2 * n for n in [x])", "TypeError: expected a literal, got generator"),
        ("def f(x): return f(x)", "RecursionError"),
        ("def f(x): return input()", "EOFError"),
        ("import pytest", "ModuleNotFoundError"),
        ("def f(x): import raychat", "ModuleNotFoundError"),
        ("import sys; sys.exit(0)", "RuntimeError: SystemExit: 0"),
        ("import os; os._exit(0)", "the program ended before it answered"),
        ("import os\ndef f(x): os._exit(0)", "the program ended before it answered"),
        ("import ctypes; ctypes.string_at(0)", "the program was killed by SIGSEGV"),
    ],
)
def test_failure_is_named(program: str, error: str) -> None:
    got = error_of(program, "assert f(4) == 8, 'no double'")
    assert got is not None
    assert got.startswith(error)


@pytest.mark.parametrize(
    "program", ["while True: pass", "def f(x):\n  while True: pass", "import time; time.sleep(999)"]
)
def test_endless_program_is_stopped(program: str) -> None:
    assert error_of(program, "f(1)", timeout_s=0.5) == "timed out after 0.5 s"


def test_tests_must_run_to_their_end() -> None:
    assert error_of("def f(): return 1", "assert f() == 1\nraise SystemExit(0)") == "SystemExit: 0"
    assert error_of("def f(): return 1", "f(1 +") is not None
    assert error_of("def f(): return 1", "while True: pass", timeout_s=0.5) == "timed out after 0.5 s"


def test_program_that_cannot_be_loaded_fails_even_without_tests() -> None:
    assert error_of("1 / 0", "") == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    "value",
    [
        "None", "True", "0", "-(2 ** 64)", "2 ** 14000", "1.5", "float('inf')", "-0.0", "2 - 3j",
        "'\\ud800 \\n é'", "b'\\xff'",
        "[]", "[1, [2.0]]", "()", "(1,)", "((1, 2), [3])", "{1, 2}", "set()", "frozenset({3})", "{}",
        "{'a': 1, 2: (3,), None: {4}}",
    ],
)  # fmt: skip
def test_literal_keeps_its_value_and_types(value: str) -> None:
    tests = f"value = {value}\nfor got in (f(value), f(x=value)): assert got == value and repr(got) == repr(value)"
    assert error_of("def f(x): return x", tests) is None


def test_types_inside_a_result_are_kept() -> None:
    assert (
        error_of("def f(): return [1, True, 1.0, (1,)]", "assert list(map(type, f())) == [int, bool, float, tuple]")
        is None
    )
    assert error_of("def f(): return True", "assert f() is True and f() == 1") is None
    assert error_of("def f(): return (1, 2)", "assert f() == [1, 2]") == "AssertionError"


def test_not_a_number_arrives() -> None:
    assert error_of("def f(x): return [x]", "import math\nassert math.isnan(f(float('nan'))[0])") is None


def test_subclasses_arrive_as_what_they_equal() -> None:
    program = """
import collections, enum
class Colour(enum.IntEnum): RED = 7
def f(): return [collections.Counter('aab'), collections.namedtuple('P', 'x y')(1, 2), Colour.RED, bytearray(b'a')]
"""
    assert error_of(program, "assert f() == [{'a': 2, 'b': 1}, (1, 2), 7, b'a']") is None


def test_exception_keeps_its_type_and_message() -> None:
    tests = "try: f()\nexcept ValueError as e: assert str(e) == 'too small'\nelse: assert False"
    assert error_of("def f(): raise ValueError('too small')", tests) is None


def test_program_keeps_its_state_between_calls() -> None:
    program = "calls = []\ndef f(x):\n  calls.append(x)\n  return calls"
    assert error_of(program, "assert f(1) == [1]\nassert f(2) == [1, 2]") is None


def test_arguments_stay_as_they_were_for_the_tests() -> None:
    assert error_of("def f(x): x.append(1)", "x = [0]\nf(x)\nassert x == [0]") is None


def test_program_cannot_name_what_the_tests_define() -> None:
    assert (
        error_of("def f(): return SECRET", "SECRET = 7\nassert f() == SECRET")
        == "NameError: name 'SECRET' is not defined"
    )


def test_output_of_program_and_tests_is_ignored() -> None:
    assert error_of("print('x' * 10**6)\ndef f(): print('y'); return 1", "print('z' * 10**6)\nassert f() == 1") is None


def test_long_programs_and_tests_fit() -> None:
    comment = "#" + "x" * 500_000 + "\n"
    assert error_of(comment + "def f(): return 1", comment + "assert f() == 1") is None


def test_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "hush")
    assert error_of("import os\ndef f(): return 'SECRET_OF_THE_PARENT' in os.environ", "assert not f()") is None


HONEST = {
    "modules": """
import bisect, collections, copy, dataclasses, datetime, decimal, enum, fractions, functools, hashlib, heapq, itertools
import json, math, operator, os, pathlib, queue, random, re, statistics, string, sys, time, typing, unicodedata, uuid
def f():
    random.seed(1); random.random(); uuid.uuid4(); time.sleep(0.001); datetime.datetime.now()
    return [hashlib.md5(b'a').hexdigest()[:4], math.gcd(12, 18), str(decimal.Decimal('0.1') * 3), json.dumps([1]),
            heapq.nsmallest(1, [3, 1]), list(itertools.chain([1], [2])), re.findall('b+', 'abba'),
            fractions.Fraction(6, 4) == 1.5]
""",
    "dataclass": """
from __future__ import annotations
from dataclasses import dataclass
@dataclass(frozen=True, order=True)
class P:
    x: int
    y: list[int] | None = None
def f(): return ['0cc1', 6, '0.3', '[1]', [1], [1, 2], ['bb'], P(1) < P(2)]
""",
    "threads": """
import threading, queue
from concurrent.futures import ThreadPoolExecutor
def f():
    got, done = queue.Queue(), threading.Event()
    def work(): got.put(6); done.set()
    thread = threading.Thread(target=work); thread.start(); done.wait(); thread.join()
    with ThreadPoolExecutor(8) as pool: numbers = list(pool.map(lambda x: x + 1, range(2)))
    return ['0cc1', got.get(), '0.3', '[1]', [1], numbers, ['bb'], True]
""",
}  # fmt: skip


@pytest.mark.parametrize("program", HONEST.values(), ids=HONEST)
def test_usual_imports_and_threads_work(program: str) -> None:
    assert error_of(program, "assert f() == ['0cc1', 6, '0.3', '[1]', [1], [1, 2], ['bb'], True], f()") is None


def test_temporary_files_work() -> None:
    needs("tmpfs")
    program = """
import os, pathlib, tempfile
def f():
    with tempfile.TemporaryFile() as a: a.write(b'x' * 100_000); a.seek(0); one = len(a.read())
    with tempfile.NamedTemporaryFile('w+') as b: b.write('b'); b.flush(); two = open(b.name).read()
    with tempfile.TemporaryDirectory() as c:
        (pathlib.Path(c) / 'n').write_text('c'); os.mkdir(c + '/m')
        os.rename(c + '/n', c + '/m/n'); three = os.listdir(c + '/m')
    open('here', 'w').write('d')
    return [one, two, three, os.listdir('.')]
"""
    for _ in range(2):  # the second run finds an empty folder again
        assert error_of(program, "assert f() == [100_000, 'b', ['n'], ['here']], f()") is None
    assert not os.path.exists("/dev/shm/here")


def test_memory_is_limited() -> None:
    program = "def f(): return len(bytearray(300 << 20))"
    assert error_of(program, "f()") == "MemoryError"
    assert error_of(program, "f()", memory_bytes=512 << 20) is None


def test_many_at_once_with_many_open_files() -> None:
    held = [open(os.devnull) for _ in range(300)]  # noqa: SIM115
    before = threading.active_count()
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda i: error_of(f"def f(): return {i}", f"assert f() == {i}"), range(12)))
    for file in held:
        file.close()
    assert outcomes == [None] * 12
    assert threading.active_count() <= before


def test_no_process_is_left_over() -> None:
    needs("tmpfs")  # Linux
    script = """
import ctypes, os
from raychat.tasks.sandbox import judge
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans of this process become its children
for program in ("def f(): return 1", "def f():\\n  while True: pass", "import os; os._exit(0)"):
    judge(program, "f()", "f", timeout_s=0.5)
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("alone")
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "alone\n"


def test_machine_without_protections_is_refused_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    if "gvisor" in sandbox.guards():
        pytest.skip("gVisor is enough")
    monkeypatch.setattr(sandbox, "REQUIRED", frozenset({"landlock", "a moat"}))
    monkeypatch.delenv(sandbox.ALLOW_OPEN, raising=False)
    sandbox.guards.cache_clear()
    with pytest.raises(ValueError, match=r"lacks a moat.*install gVisor.*set RAYCHAT_ALLOW_OPEN_SANDBOX=1"):
        judge("def f(): pass", "f()", "f")
    monkeypatch.setenv(sandbox.ALLOW_OPEN, "1")
    assert judge("def f(): pass", "f()", "f", timeout_s=PATIENT_S).passed
    sandbox.guards.cache_clear()


@pytest.mark.slow
def test_canonical_solutions_of_human_eval_pass(shared_data: Path) -> None:
    task = tasks.load("humaneval", str(shared_data), "test")
    assert len(task.problems) == 164
    failed = []
    for problem in task.problems:
        name, answer = problem.reference["entry_point"], problem.messages[-1]["content"]
        if error := judge(program_of(problem, answer), checks(problem), name, timeout_s=PATIENT_S).error:
            failed.append((problem.source, error))
    assert failed == []
