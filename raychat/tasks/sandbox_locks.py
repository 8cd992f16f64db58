"""What the kernel keeps a sandboxed process from. Standard library only, like `sandbox_child.py`."""

import ctypes
import os
import resource
import struct
import sys

FOLDER = "/dev/shm"  # where a tmpfs is mounted for a program to write to
FOLDER_BYTES, FOLDER_NAMES = 16 << 20, 1000
MAX_OPEN_FILES = 64

# System calls that a pure Python program needs, with their numbers on x86_64 and aarch64 (None = does not exist). All
# others (sockets, processes, signals to others, mounts, io_uring, ...) fail with "operation not permitted".
ALLOWED_CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65),
    "writev": (20, 66), "access": (21, None), "pipe": (22, None), "select": (23, None), "sched_yield": (24, 124),
    "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None), "nanosleep": (35, 101),
    "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103), "getpid": (39, 172), "exit": (60, 93),
    "uname": (63, 160), "fsync": (74, 82), "ftruncate": (77, 46),
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
# These calls are allowed if one argument, given by its index, has one of these values.
RESTRICTED_CALLS: dict[str, tuple[tuple[int, int], int, tuple[int, ...]]] = {
    "clone": ((56, 220), 0, (0x3D0F00, 0x7D0F00)),  # the flags of a thread, by glibc and musl
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 1030)),  # duplicate and flags: no owner, signal, lease or lock
    "ioctl": ((16, 29), 1, (0x5401, 0x5413, 0x5450, 0x5451)),  # is it a terminal, how wide; close on exec
}
CLONE3 = 435  # its flags are in memory, where a filter cannot look; glibc takes clone where there is no clone3
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig, sigkill = 1, 9
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, sigkill, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parent dies."""
    if sys.platform == "linux":
        pr_set_child_subreaper = 36
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def own_folder(may_execute: bool = False) -> str | None:
    """Mount a small tmpfs that only this process sees and enter it; return its path, None where that is not permitted.

    Args:
        may_execute: whether programs in it could be run, or in what is mounted there.

    Source: Linux, user_namespaces(7), mount_namespaces(7), tmpfs(5).
    """
    if sys.platform != "linux":
        return None
    libc, uid, gid = ctypes.CDLL(None), os.geteuid(), os.getegid()
    new_user, new_mounts, nosuid_nodev, noexec = 0x10000000, 0x20000, 2 | 4, 8
    if libc.unshare(new_user | new_mounts) != 0:
        return None
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError:
        return None
    options = f"size={FOLDER_BYTES},nr_inodes={FOLDER_NAMES},mode=700".encode()
    flags = nosuid_nodev | (0 if may_execute else noexec)
    if libc.mount(b"tmpfs", FOLDER.encode(), b"tmpfs", flags, options) != 0:
        return None
    os.chdir(FOLDER)
    return FOLDER


def limit_resources(memory_bytes: int, cpu_s: int) -> list[str]:
    """Set soft and hard resource limits; return the names of those in force."""
    limits = {"AS": memory_bytes, "CPU": cpu_s, "FSIZE": FOLDER_BYTES, "NOFILE": MAX_OPEN_FILES, "CORE": 0}
    taken = []
    for name, value in limits.items():
        try:
            hard = value + (name == "CPU")  # SIGXCPU a second before SIGKILL, so that the reason shows
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, hard))
            taken.append("rlimit_" + name.lower())
        except (AttributeError, OSError, ValueError):  # not on this system, or already lower
            pass
    return taken


def forbid_new_privileges(libc: ctypes.CDLL) -> bool:
    """Gain no privileges from set-uid programs, drop all capabilities (of a root user)."""
    pr_set_no_new_privs = 38
    if libc.prctl(pr_set_no_new_privs, 1, 0, 0, 0) != 0:
        return False
    version_3 = 0x20080522
    header = ctypes.create_string_buffer(struct.pack("Ii", version_3, 0))
    none = ctypes.create_string_buffer(struct.pack("6I", 0, 0, 0, 0, 0, 0))
    return bool(libc.capset(header, none) == 0)


def libraries() -> list[str]:
    """Return the folders of the libraries of Python and the system, some of which may not exist."""
    stdlib = os.path.dirname(os.path.realpath(os.__file__))
    return [stdlib, os.path.dirname(stdlib), "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"]


def restrict_files(libc: ctypes.CDLL, folder: str | None) -> int:
    """Allow reads of the libraries of Python and the system, and everything in `folder`; forbid all other files.

    Returns Landlock's ABI version, 0 where it is not in force.

    Source: Landlock; Linux, Documentation/userspace-api/landlock.rst (rights by ABI version).
    """
    create_ruleset, add_rule, restrict_self = 444, 445, 446  # the same numbers on every architecture
    abi = libc.syscall(create_ruleset, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return 0
    rights = (1 << (13 + (abi >= 2) + (abi >= 3))) - 1  # 13 rights in ABI 1; + REFER in 2, + TRUNCATE in 3
    if abi >= 5:
        rights |= 1 << 15  # IOCTL_DEV
    fields = [rights] + [0b11] * (abi >= 4) + [0b11] * (abi >= 6)  # TCP; abstract sockets and signals of others
    attributes = ctypes.create_string_buffer(struct.pack(f"{len(fields)}Q", *fields))
    ruleset = libc.syscall(create_ruleset, attributes, ctypes.c_size_t(8 * len(fields)), 0)
    if ruleset < 0:
        return 0
    read_file, read_folder = 1 << 2, 1 << 3
    rules = dict.fromkeys(libraries(), read_file | read_folder)
    rules |= {"/dev/null": read_file | 1 << 1, "/dev/urandom": read_file}
    if folder:
        rules[folder] = rights & ~1  # no EXECUTE
    for path, access in rules.items():
        try:
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rule = ctypes.create_string_buffer(struct.pack("=Qi", access, beneath))
        failed = libc.syscall(add_rule, ruleset, 1, rule, 0) != 0
        os.close(beneath)
        if failed:
            return 0
    done = libc.syscall(restrict_self, ruleset, 0) == 0
    os.close(ruleset)
    return int(abi) if done else 0


def filter_calls(libc: ctypes.CDLL) -> bool:
    """Allow ALLOWED_CALLS and RESTRICTED_CALLS, answer EPERM to others, kill on calls of a foreign architecture.

    Source: seccomp; Linux, Documentation/userspace-api/seccomp_filter.rst; struct sock_filter is (code, jt, jf, k).
    """
    machine = os.uname().machine
    if machine not in AUDIT_ARCH:
        return False
    load, jump_equal, answer = 0x20, 0x15, 0x06
    allow, errno, kill = (answer, 0, 0, 0x7FFF0000), 0x00050000, (answer, 0, 0, 0x80000000)
    refuse, absent = (answer, 0, 0, errno | 1), (answer, 0, 0, errno | 38)
    column = list(AUDIT_ARCH).index(machine)
    # seccomp_data: number at 0, architecture at 4, lower half of argument i at 16 + 8 i
    program = [(load, 0, 0, 4), (jump_equal, 1, 0, AUDIT_ARCH[machine]), kill, (load, 0, 0, 0)]
    program += [(jump_equal, 0, 1, CLONE3), absent]
    for numbers, argument, values in RESTRICTED_CALLS.values():
        of_value = [step for value in values for step in ((jump_equal, 0, 1, value), allow)]
        block = [(load, 0, 0, 16 + 8 * argument), *of_value, refuse]
        program += [(jump_equal, 0, len(block), numbers[column]), *block]
    for both in ALLOWED_CALLS.values():
        if (number := both[column]) is not None:
            program += [(jump_equal, 0, 1, number), allow]
    program.append(refuse)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    pr_set_seccomp, mode_filter = 22, 2
    return bool(libc.prctl(pr_set_seccomp, mode_filter, header, 0, 0) == 0)


def lock_in(memory_bytes: int, cpu_s: int, folder: str | None) -> list[str]:
    """Apply every protection that this system has; return the names of those in force.

    Args:
        folder: where the process may write; None = nowhere.
    """
    guards = limit_resources(memory_bytes, cpu_s)
    die_with_parent()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        guards += ["no_new_privs"] * forbid_new_privileges(libc)
        abi = restrict_files(libc, folder)
        # before ABI 3 (Linux 6.2) it does not keep files from being truncated
        guards += ["landlock" if abi >= 3 else f"landlock_abi_{abi}"] * (abi > 0)
        guards += ["seccomp"] * filter_calls(libc)  # last: it also refuses the calls above
    return guards
