"""Programs that try to get out of the sandbox, and ones that should not notice it."""

import os
import socket
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raychat.tasks import sandbox
from raychat.tasks.sandbox import Outcome, run


@pytest.fixture(scope="module")
def guards() -> tuple[str, ...]:
    return run("pass").guards


def needs(guard: str, guards: tuple[str, ...]) -> None:
    if guard not in guards:
        pytest.skip(f"this system has no {guard}: got {guards}")


def error_of(code: str, **limits: int) -> str:
    outcome = run(code, **limits)
    assert outcome.passed == (outcome.error is None)
    return outcome.error or ""


def folders() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("sandbox-")}


def test_program_that_ends_well_passes() -> None:
    outcome = run("import math, collections, re\nprint(math.gcd(12, 18))")
    assert (outcome.passed, outcome.stdout, outcome.error) == (True, "6\n", None)


def test_failing_assertion_is_named() -> None:
    outcome = run("print('before')\nassert False, 'no'")
    assert (outcome.passed, outcome.stdout, outcome.error) == (False, "before\n", "AssertionError: no")


@pytest.mark.parametrize(
    "code, error",
    [
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("raise SystemExit", "SystemExit"),
        ("import os; os._exit(0)", "ended before its last line"),
        ("import os; os.closerange(0, 10_000)\nwhile True: pass", "ended before its last line"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
        ("input()", "EOFError"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("'\ud800'", "SyntaxError"),
        ("class E(Exception):\n    __str__ = None\nraise E", "E"),
    ],
)
def test_anything_but_running_to_the_end_fails(code: str, error: str) -> None:
    assert error_of(code).startswith(error)


def test_endless_loop_is_stopped_in_time() -> None:
    start = time.monotonic()
    outcome = run("print('here', flush=True)\nwhile True: pass", timeout_s=0.5)
    assert outcome == Outcome(False, "here\n", "timed out after 0.5 s", outcome.guards)
    assert time.monotonic() - start < 5  # generous: the machine may be busy


def test_memory_bomb_is_a_memory_error() -> None:
    code = "x = []\nwhile True: x.append(bytearray(1 << 20))"
    assert error_of(code, memory_bytes=128 << 20).startswith("MemoryError")


def test_huge_output_is_cut_and_harmless() -> None:
    outcome = run("print('x' * (32 << 20))", timeout_s=20)
    assert outcome.passed
    assert len(outcome.stdout) == sandbox.MAX_OUTPUT_BYTES


def test_output_that_is_not_text_is_shown_somehow() -> None:
    assert run("import sys; sys.stdout.buffer.write(b'\\xff')").stdout == "\ufffd"


def test_files_live_in_an_empty_folder_that_is_removed() -> None:
    before = folders()
    outcome = run("import os; print(os.listdir('.')); open('a', 'w').write('kept'); print(open('a').read())")
    assert outcome.stdout == "[]\nkept\n"
    assert folders() <= before


def test_big_file_is_refused() -> None:
    assert error_of("open('a', 'wb').write(bytes(64 << 20))").startswith("OSError")


def test_many_files_are_stopped() -> None:
    outcome = run("for i in range(10**7): open(str(i), 'w').write('x' * 100_000)", timeout_s=20)
    assert outcome.error == "wrote too much to its folder"


def test_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "hush")
    assert run("import os; print('SECRET_OF_THE_PARENT' in os.environ)").stdout == "False\n"


def test_no_inherited_files() -> None:
    with open(__file__) as held:
        os.set_inheritable(held.fileno(), True)
        # one file more than the three standard ones: the pipe for the verdict, of any number
        code = (
            "import os\nn = 0\nfor fd in range(3, 9999):\n  try: os.fstat(fd); n += 1\n  except OSError: pass\nprint(n)"
        )
        assert run(code).stdout == "1\n"


def test_third_party_packages_are_not_there() -> None:
    assert error_of("import pytest").startswith("ModuleNotFoundError")


def test_no_network(guards: tuple[str, ...]) -> None:
    needs("seccomp", guards)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        error = error_of(f"import socket; socket.create_connection(('127.0.0.1', {port}))")
    assert error.startswith("PermissionError")


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess; subprocess.run(['ls'])",
        "import os; os.execv('/bin/ls', ['ls'])",
        "import os; os.system('ls') and 1 / 0",
        "import threading; threading.Thread(target=print).start()",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.kill(-1, 9)",
        "import socket; socket.socketpair()",
        "import os; os.chmod('.', 0)",
        "import ctypes; l = ctypes.CDLL(None); assert l.syscall(425, 8, 0) >= 0",  # io_uring_setup, a way round filters
    ],
)
def test_no_other_process_is_started_or_touched(code: str, guards: tuple[str, ...]) -> None:
    needs("seccomp", guards)
    assert error_of(code, timeout_s=10) not in ("", "timed out after 10 s")


def test_limits_cannot_be_raised() -> None:
    assert not run("import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))").passed


def test_files_elsewhere_are_closed(guards: tuple[str, ...], tmp_path: Path) -> None:
    needs("landlock", guards)
    secret = tmp_path / "secret.txt"
    secret.write_text("hush")
    for code in (
        f"open({str(secret)!r}).read()",
        f"open({str(tmp_path / 'new.txt')!r}, 'w')",
        f"import os; os.unlink({str(secret)!r})",
        f"import os; os.rename({str(secret)!r}, 'mine')",
        f"import os; os.truncate({str(secret)!r}, 0)",
        "open('/proc/self/environ').read()",
        "open('/etc/passwd').read()",
    ):
        assert not run(code).passed, code
    assert secret.read_text() == "hush"


def test_verdict_is_not_taken_from_a_careless_forgery() -> None:
    code = 'import os\nos.write(3, b\'{"nonce": "x", "error": null}\\n\')\nfor fd in range(4, 10_000):\n'
    code += '  try: os.write(fd, b\'{"nonce": "x", "error": null}\\n\')\n  except OSError: pass\nos._exit(0)'
    assert not run(code).passed


def test_report_that_no_parser_can_read_is_a_failure() -> None:
    code = "import os\nfor fd in range(3, 10_000):\n  try: os.write(fd, b'[' * 60_000 + b'\\n')\n  except OSError: pass"
    assert error_of(code) == "ended before its last line"


def test_many_at_once() -> None:
    before = threading.active_count()
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda i: run(f"print({i})", timeout_s=30), range(16)))
    assert [outcome.stdout for outcome in outcomes] == [f"{i}\n" for i in range(16)]
    assert threading.active_count() <= before


def test_child_is_a_bare_script() -> None:
    """The child must not depend on the package: it runs under -I -S with nothing on the path."""
    source = sandbox.CHILD.read_text()
    assert "raychat" not in source.split('"""', 2)[2]
    assert sys.version_info >= (3, 11)
