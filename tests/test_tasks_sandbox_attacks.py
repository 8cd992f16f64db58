"""Hostile programs: none passes, none harms the machine, none stops the evaluation.

Most attacks are followed by a right solution, so they would pass if nothing stopped them.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from raychat.tasks import sandbox
from raychat.tasks.sandbox import judge

TESTS = """
EXPECTED = 49  # ANSWER-49
def check(candidate):
    for _ in range(3):
        assert candidate(7) == EXPECTED
    try:
        candidate(-1)
    except ValueError:
        pass
    else:
        assert False, 'expected a ValueError'
check(f)
"""
RIGHT = """
def f(n):
    if n < 0: raise ValueError
    return n * n
"""
PATIENT_S, SHORT_S = 120.0, 1.0  # for programs that end, also on a slow machine, and for those that never do
CTYPES = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
X86_64 = "import os; x86 = os.uname().machine == 'x86_64'\n"


@pytest.fixture(autouse=True)
def guarded(isolation: str) -> None:
    """Skip where an attack could succeed."""
    if missing := sandbox.lacking(sandbox.guards()):
        pytest.skip(f"this system has no {missing}")


def error_of(program: str, timeout_s: float = PATIENT_S) -> str | None:
    error = judge(program, TESTS, "f", timeout_s=timeout_s).error
    if error is not None:
        error.encode()  # it can be written down
    return error


def call(x86_64: int, aarch64: int, *arguments: Any) -> str:
    """Return code that makes a system call by number, and raises an OSError if it is refused."""
    numbers = f"{x86_64} if x86 else {aarch64}"
    listed = ", ".join(str(argument) for argument in arguments)
    return (
        f"{CTYPES}{X86_64}got = libc.syscall({numbers}, {listed})\n"
        "if got < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))\n"
    )


def to_all_files(data: bytes) -> str:
    """Return code that writes data to every open file."""
    return f"import os\nfor fd in range(64):\n  try: os.write(fd, {data!r})\n  except OSError: pass\n"


# Programs without a right solution: to pass, they must forge the verdict or find the answer.
FORGERIES = {
    "exit well": "import sys; sys.exit(0)",
    "exit at once": "import os; os._exit(0)",
    "exit in a call": "import os\ndef f(n): os._exit(0)",
    "an object that equals all": "class E:\n  __eq__ = lambda a, b: True\n  __hash__ = None\ndef f(n): return E()",
    "an int that equals all": "class E(int):\n  __eq__ = lambda a, b: True\n  __hash__ = None\ndef f(n): return E(1)",
    "a str that equals all": "class E(str):\n  __eq__ = lambda a, b: True\n  __hash__ = None\ndef f(n): return E('1')",
    "a list that equals all": "class E(list):\n  __eq__ = lambda a, b: True\n  __hash__ = None\ndef f(n): return E()",
    "a verdict on every file": to_all_files(b'{"guards": [], "error": null}\n') + "os._exit(0)",
    "answers ahead of the calls": to_all_files(b'{"value": 49}\n' * 3 + b'{"error": ["KeyError", ""]}\n'),
    "other assertions": "import builtins; builtins.AssertionError = ValueError\ndef f(n): raise ValueError",
    "another judge": """
import sys, os
child = sys.modules['sandbox_child']
for name in ('pack', 'unpack', 'examine', 'watch', 'execute', 'main'): setattr(child, name, lambda *a, **k: None)
child.json.dumps = lambda value: '{"guards": [], "error": null}'
def f(n): return 0""",
    "a hook at exit": "import atexit, os; atexit.register(print, 'passed')\ndef f(n): raise SystemExit(0)",
    "a trace function": "import sys; sys.settrace(lambda *a: None)\ndef f(n): return None",
    "not a number": "def f(n): return float('nan')",
    "a caller's name": "def check(candidate): pass\nEXPECTED = 0\ndef f(n): return 0",
    "an exception of the judge's": "def f(n): raise __import__('builtins').StopIteration",
    "source code as an answer": "def f(n): return 'EXPECTED'",
    # crash the judge
    "bytes that are not text": to_all_files(b"\xff\x00\n"),
    "nested brackets": to_all_files(b"[" * 50_000 + b"\n"),
    "not an answer": to_all_files(b"[1, 2]\n"),
    "an unknown type": to_all_files(b'{"value": null}\n{"value": {"eval": "EXPECTED"}}\n'),
    "a surrogate in an exception": "def f(n): raise RuntimeError('\\ud800')",
    "an exception without text": "class E(Exception):\n  __str__ = None\ndef f(n): raise E",
    "an exception without a name": """
class M(type): __name__ = property(lambda c: 1 / 0)
class E(Exception, metaclass=M): pass
def f(n): raise E""",
    "a group of exceptions": "def f(n): raise BaseExceptionGroup('all', [SystemExit(0), KeyboardInterrupt()])",
    "source that is not text": "'\ud800'",
    "source with a null": "x = 1\0",
    "deep source": "(" * 100_000,
    "closed files": "import os; os.closerange(0, 64)",
    "replaced files": "import os\nfor fd in range(64): os.dup2(2, fd)\ndef f(n): return 49",
    "a crash": "import ctypes; ctypes.string_at(0)",
    "a deep result": "def f(n):\n  x = []\n  for _ in range(10**5): x = [x]\n  return x",
    "a result without end": "def f(n):\n  x = []\n  x.append(x)\n  return x",
    "a huge result": "def f(n): return 'x' * (16 << 20)",
    "a huge number": "def f(n): return 1 << (1 << 27)",
    "endless recursion": "def f(n): return f(n)",
    "memory": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "threads": "import _thread, time\nwhile True: _thread.start_new_thread(time.sleep, (10**6,))",
    "open files": "import os\nkept = []\nwhile True: kept.append(open('/dev/null'))",
    # read the answers
    "answers in objects": """
import gc
def f(n):
    if n < 0: raise ValueError
    texts = [x for x in gc.get_objects() if isinstance(x, dict) and 'EXPECTED' in x]
    return texts[0]['EXPECTED']""",
    "answers in frames": """
import sys
def f(n):
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_globals, frame.f_locals):
            if 'EXPECTED' in scope: return scope['EXPECTED']
        frame = frame.f_back""",
    "answers in open files": """
import os, re
def f(n):
    if n < 0: raise ValueError
    for fd in range(1000):
        try: found = re.search(rb'ANSWER-(\\d+)', os.pread(fd, 1 << 20, 0))
        except OSError: continue
        if found: return int(found[1])""",
    "answers in files": """
import glob, re
def f(n):
    if n < 0: raise ValueError
    for path in glob.glob('/tmp/**', recursive=True) + glob.glob('/proc/*/fd/*') + glob.glob('/proc/*/cmdline'):
        try: found = re.search(rb'ANSWER-(\\d+)', open(path, 'rb').read())
        except OSError: continue
        if found: return int(found[1])""",
    "answers in modules": "import sys\ndef f(n): return sys.modules['tests'].EXPECTED",
}  # fmt: skip

# Programs that end with a right solution.
ACTS = {
    "fork": "import os\nif os.fork() == 0: os._exit(0)",
    "subprocess": "import subprocess; subprocess.run(['/bin/true'])",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "spawn": "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "system": "import os\nif os.system('true') != 0: raise PermissionError",
    "multiprocessing": "import multiprocessing as m; p = m.Process(target=print); p.start(); p.join()",
    "clone": call(56, 220, "17 | 0x100 | 0x4000", 0, 0, 0, 0),  # SIGCHLD, CLONE_VM, CLONE_VFORK
    "clone3": call(435, 435, "ctypes.create_string_buffer(64)", 64),
    "kill the parent": "import os; os.kill(os.getppid(), 9)",
    "stop the parent": "import os, signal; os.kill(os.getppid(), signal.SIGSTOP)",
    "kill the group": "import os; os.killpg(0, 9)",
    "kill all": "import os; os.kill(-1, 9)",
    "stop itself": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "queue a real-time signal": call(129, 138, "os.getppid()", 40, "ctypes.create_string_buffer(128)"),
    "signal a thread of the parent": call(234, 131, "os.getppid()", "os.getppid()", 9),
    "signal by a handle": call(434, 434, "os.getppid()", 0),
    "signal by a timer": call(222, 107, 0, "ctypes.create_string_buffer(64)", "ctypes.create_string_buffer(8)"),
    "own a pipe for another": "import fcntl, os\nfcntl.fcntl(os.pipe()[0], 8, os.getppid())",  # F_SETOWN
    "choose a pipe's signal": "import fcntl, os\nfcntl.fcntl(os.pipe()[0], 10, 9)",  # F_SETSIG
    "own a pipe by ioctl": "import fcntl, os\nfcntl.ioctl(os.pipe()[0], 0x8901, bytes(4))",
    "leave the session": "import os; os.setsid()",
    "outlive the parent": call(157, 167, 1, 0, 0, 0, 0),  # PR_SET_PDEATHSIG
    "trace the parent": call(101, 117, 16, "os.getppid()", 0, 0),
    "read another's memory": call(310, 270, "os.getppid()", 0, 0, 0, 0, 0),
    "open another's memory": "import os; open(f'/proc/{os.getppid()}/mem', 'rb')",
    "open its own memory": "open('/proc/self/mem', 'r+b')",
    "raise limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "raise its priority": "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "run elsewhere": "import os; os.sched_setaffinity(os.getppid(), {0})",
    "mount": call(165, 40, 0, 0, 0, 0, 0),
    "another namespace": call(272, 97, 0x10000000),
    "an io_uring": call(425, 425, 8, "ctypes.create_string_buffer(120)"),
    "a key": call(248, 217, 0, 0, 0, 0, 0),
    "shared memory": call(29, 194, 0, 4096, 0o1600),
    "a file in memory": "import os; os.memfd_create('x')",
    "a socket": "import socket; socket.socket()",
    "a pair of sockets": "import socket; socket.socketpair()",
    "a datagram": "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
    "passwords": "open('/etc/passwd').read()",
    "the environment": "open('/proc/self/environ').read()",
    "the parent's arguments": "import os; open(f'/proc/{os.getppid()}/cmdline').read()",
    "a home": "import os; os.listdir('/home')",
    "a device": "open('/dev/zero').read(1)",
    "a new file elsewhere": "open('/tmp/forged', 'w')",
    "a new folder elsewhere": "import os; os.mkdir('/tmp/forged')",
    "a link": "import os; os.symlink('/etc/passwd', 'link')",
    "permissions": "import os; os.chmod('/tmp', 0)",
    "an owner": "import os; os.chown('.', 1, 1)",
    "a package of the library": "import json, os; open(json.__file__, 'a')",
    "a shorter library": "import json, os; os.close(os.open(json.__file__, os.O_RDONLY | os.O_TRUNC))",
    "a library of its own length": "import json, os; os.truncate(json.__file__, os.stat(json.__file__).st_size)",
    "a full folder": "for i in range(64): open(str(i), 'wb').write(bytes(1 << 20))",
    "many names": "for i in range(10_000): open(str(i), 'w').close()",
}
OTHER_ERRORS = {  # than "not permitted"
    "clone3": "OSError: [Errno 38]",
    "raise limits": "ValueError: not allowed",
    "a full folder": "OSError: [Errno 28]",
    "many names": "OSError: [Errno 28]",
}

# What a program in a container would do, it does to itself: it has files of its own, and no /proc.
OTHER_ERRORS_IN_GVISOR = {
    **dict.fromkeys(["open another's memory", "open its own memory"], "FileNotFoundError"),
    **dict.fromkeys(["passwords", "the environment", "the parent's arguments", "a home"], "FileNotFoundError"),
    **dict.fromkeys(["a new file elsewhere", "a new folder elsewhere"], "OSError: [Errno 30]"),  # read-only
    **dict.fromkeys(["a device", "many names"], "passed"),  # gVisor's /dev/zero; names take memory of its own kernel
}

ENDLESS = {
    "a loop": "while True: pass",
    "a loop in a call": "def f(n):\n  while True: pass",
    "a sleep": "import time; time.sleep(10**6)",
    "a slow expression": "import re; re.match('(a+)+b', 'a' * 64)",
    "a huge power": "x = 9 ** 9 ** 9",
    "endless output": "while True: print('x' * 10**6)",
    "ignored signals": "import signal\nfor n in (1, 2, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    "closed files and a loop": "import os; os.closerange(0, 64)\nwhile True: pass",
    "exceptions that are caught": "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
    "an answer that never ends": """
import os, sys
def f(n):
    while True:
        for fd in range(3, 10):
            try: os.write(fd, b'x')
            except OSError: pass""",
}


@pytest.mark.parametrize("program", FORGERIES.values(), ids=FORGERIES)
def test_nobody_forges_a_verdict_or_finds_the_answers(program: str) -> None:
    assert error_of(program) is not None
    assert error_of(RIGHT) is None


@pytest.mark.parametrize("act", ACTS)
def test_forbidden_acts_raise_an_error(act: str, isolation: str) -> None:
    error = error_of(ACTS[act] + RIGHT) or "passed"
    others = OTHER_ERRORS | (OTHER_ERRORS_IN_GVISOR if isolation == "gvisor" else {})
    assert error.startswith(("PermissionError", others.get(act, "PermissionError"))), error


@pytest.mark.parametrize("program", ENDLESS.values(), ids=ENDLESS)
def test_endless_programs_are_stopped(program: str) -> None:
    assert error_of(program, SHORT_S) is not None
    assert error_of(RIGHT) is None


def test_threads_are_counted(isolation: str) -> None:
    if isolation == "gvisor":
        pytest.skip("threads inside a container are not seen from outside: test_tasks_gvisor.py")
    program = """
import threading, time
threading.stack_size(32 << 10)
for _ in range(200): threading.Thread(target=time.sleep, args=(10**6,), daemon=True).start()
time.sleep(10**6)
"""
    assert error_of(program) == "started more than 64 threads"


def test_program_has_no_file_but_the_two_pipes(tmp_path: Path) -> None:
    program = """
import os
def f():
    found = []
    for fd in range(3, 9999):
        try: found.append(oct(os.fstat(fd).st_mode)[2:4])
        except OSError: pass
    return found
"""
    with open(tmp_path / "held", "w") as held:
        os.set_inheritable(held.fileno(), True)
        assert judge(program, "assert f() == ['10', '10'], f()", "f", timeout_s=PATIENT_S).error is None
