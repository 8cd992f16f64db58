"""The process inside the sandbox: restrict itself, then run the program. `sandbox.run` starts it as a bare script.

Standard library only, without raychat: it runs under `python -I -S`, so that it starts in milliseconds.
Arguments: program file, file descriptor for the report, nonce, memory limit in bytes, CPU limit in seconds.
Each protection is a function that returns whether it is in force.
"""

import contextlib
import ctypes
import os
import platform
import resource
import struct
import sys

MAX_FILE_BYTES = 1 << 20
MAX_OPEN_FILES = 64

# System calls that a pure Python program needs, with their numbers on x86_64 and aarch64 (None = does not exist). All
# others (sockets, processes, threads, signals to others, mounts, io_uring, ...) fail with "operation not permitted".
ALLOWED_CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "ioctl": (16, 29), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65),
    "writev": (20, 66), "access": (21, None), "pipe": (22, None), "select": (23, None), "sched_yield": (24, 124),
    "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None), "nanosleep": (35, 101),
    "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103), "getpid": (39, 172), "exit": (60, 93),
    "uname": (63, 160), "fcntl": (72, 25), "fsync": (74, 82), "truncate": (76, 45), "ftruncate": (77, 46),
    "getcwd": (79, 17), "chdir": (80, 49), "rename": (82, None), "mkdir": (83, None), "rmdir": (84, None),
    "unlink": (87, None), "readlink": (89, None), "umask": (95, 166), "gettimeofday": (96, 169),
    "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "sigaltstack": (131, 132),
    "gettid": (186, 178), "futex": (202, 98), "sched_getaffinity": (204, 123), "getdents64": (217, 61),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "openat": (257, 56), "mkdirat": (258, 34), "newfstatat": (262, 79), "unlinkat": (263, 35),
    "renameat": (264, 38), "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73),
    "set_robust_list": (273, 99), "dup3": (292, 24), "pipe2": (293, 59), "renameat2": (316, 276),
    "getrandom": (318, 278), "statx": (332, 291), "rseq": (334, 293), "faccessat2": (439, 439),
}  # fmt: skip
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def limit_resources(memory_bytes: int, cpu_s: int) -> list[str]:
    """Set soft and hard resource limits; return the names of those in force."""
    limits = {"AS": memory_bytes, "CPU": cpu_s, "FSIZE": MAX_FILE_BYTES, "NOFILE": MAX_OPEN_FILES, "CORE": 0}
    limits["NPROC"] = 0  # does not bind root; the system call filter does
    taken = []
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
            taken.append("rlimit_" + name.lower())
        except (AttributeError, OSError, ValueError):  # not on this system, or already lower
            pass
    return taken


def forbid_new_privileges(libc: ctypes.CDLL) -> bool:
    """Die with the parent, gain no privileges from set-uid programs, drop all capabilities (of a root user)."""
    pr_set_pdeathsig, sigkill, pr_set_no_new_privs = 1, 9, 38
    libc.prctl(pr_set_pdeathsig, sigkill, 0, 0, 0)
    if libc.prctl(pr_set_no_new_privs, 1, 0, 0, 0) != 0:
        return False
    version_3 = 0x20080522
    header = ctypes.create_string_buffer(struct.pack("Ii", version_3, 0))
    none = ctypes.create_string_buffer(struct.pack("6I", 0, 0, 0, 0, 0, 0))
    return bool(libc.capset(header, none) == 0)


def restrict_files(libc: ctypes.CDLL, folder: str) -> bool:
    """Allow reads of the libraries of Python and the system, and reads and writes in `folder`; forbid all other files.

    Source: Landlock; Linux, Documentation/userspace-api/landlock.rst (rights by ABI version).
    """
    create_ruleset, add_rule, restrict_self = 444, 445, 446  # the same numbers on every architecture
    abi = libc.syscall(create_ruleset, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return False
    rights = (1 << (13 + (abi >= 2) + (abi >= 3))) - 1  # 13 rights in ABI 1; + REFER in 2, + TRUNCATE in 3
    if abi >= 5:
        rights |= 1 << 15  # IOCTL_DEV
    fields = [rights] + [0b11] * (abi >= 4) + [0b11] * (abi >= 6)  # TCP; abstract sockets and signals of others
    attributes = ctypes.create_string_buffer(struct.pack(f"{len(fields)}Q", *fields))
    ruleset = libc.syscall(create_ruleset, attributes, ctypes.c_size_t(8 * len(fields)), 0)
    if ruleset < 0:
        return False
    read_file, read_folder = 1 << 2, 1 << 3
    stdlib = os.path.dirname(os.path.realpath(os.__file__))
    readable = [stdlib, os.path.dirname(stdlib), "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"]
    rules = dict.fromkeys(readable, read_file | read_folder)
    rules |= {"/dev/null": read_file | 1 << 1, "/dev/urandom": read_file, folder: rights & ~1}  # ~1: no EXECUTE
    for path, access in rules.items():
        try:
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rule = ctypes.create_string_buffer(struct.pack("=Qi", access, beneath))
        failed = libc.syscall(add_rule, ruleset, 1, rule, 0) != 0
        os.close(beneath)
        if failed:
            return False
    done = libc.syscall(restrict_self, ruleset, 0) == 0
    os.close(ruleset)
    return bool(done)


def filter_calls(libc: ctypes.CDLL) -> bool:
    """Allow ALLOWED_CALLS, answer EPERM to all other system calls, kill on calls of a foreign architecture.

    Source: seccomp; Linux, Documentation/userspace-api/seccomp_filter.rst; struct sock_filter is (code, jt, jf, k).
    """
    machine = platform.machine()
    if machine not in AUDIT_ARCH:
        return False
    load, jump_equal, answer = 0x20, 0x15, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050000 | 1, 0x80000000
    column = list(AUDIT_ARCH).index(machine)
    numbers = sorted(n for pair in ALLOWED_CALLS.values() if (n := pair[column]) is not None)
    program = [
        (load, 0, 0, 4),  # seccomp_data.arch
        (jump_equal, 1, 0, AUDIT_ARCH[machine]),
        (answer, 0, 0, kill),
        (load, 0, 0, 0),  # seccomp_data.nr
        *((jump_equal, len(numbers) - i, 0, number) for i, number in enumerate(numbers)),
        (answer, 0, 0, refuse),
        (answer, 0, 0, allow),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    pr_set_seccomp, mode_filter = 22, 2
    return bool(libc.prctl(pr_set_seccomp, mode_filter, header, 0, 0) == 0)


def lock_in(memory_bytes: int, cpu_s: int) -> list[str]:
    """Apply every protection that this system has; return the names of those in force."""
    guards = limit_resources(memory_bytes, cpu_s)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        guards += ["no_new_privs"] * forbid_new_privileges(libc)
        guards += ["landlock"] * restrict_files(libc, os.getcwd())
        guards += ["seccomp"] * filter_calls(libc)  # last: it also refuses the calls above
    return guards


def main() -> None:
    path, report_fd, nonce, memory_bytes, cpu_s = sys.argv[1:]
    del sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        source = file.read()
    os.unlink(path)
    report = int(report_fd)
    guards = lock_in(int(memory_bytes), int(cpu_s))
    os.write(report, f"{' '.join(guards)}\n".encode())
    error = ""
    try:
        exec(compile(source, "<program>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
        sys.stdout.flush()
    except BaseException as problem:
        try:
            error = f"{type(problem).__name__}: {problem}"[:2000]
        except BaseException:  # the exception's own __str__ may be the program's
            error = type(problem).__name__
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os.write(report, f"{nonce}{error}".encode(errors="backslashreplace"))
    os._exit(0)


if __name__ == "__main__":
    main()
