"""A program's own container: gVisor's `runsc` runs this interpreter, with its libraries mounted read-only.

Standard library only. `runsc` is called directly: Ray's sandboxes (`ray.experimental.sandbox`, alpha) are made of the
same gVisor, but they need a container image with Python on every node, and Ray.
"""

import json
import os
import resource
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import sandbox_locks as locks  # type: ignore[import-not-found]

CODE = "/sandbox"  # where the container has the files of the sandbox
FILES = ("sandbox_child.py", "sandbox_locks.py", "gvisor.py")
START = f"import sys; sys.path.insert(0, {CODE!r}); import sandbox_child; del sys.path[0]; sandbox_child."
KERNEL_HEAP_BYTES = 1 << 30  # of gVisor's kernel itself: what it keeps for names of files, threads, mappings
NOBODY = 65534


def mounts() -> list[dict[str, Any]]:
    """Return what the container sees of files, as the runtime specification of OCI writes it.

    `runsc` adds /proc, /sys, /dev, /dev/pts and a /tmp without a limit by itself, unless something is mounted there.
    """
    here = os.path.dirname(os.path.realpath(__file__))
    binds = {path: path for path in (*locks.libraries(), interpreter(), "/etc/ld.so.cache")}
    binds |= {f"{CODE}/{name}": f"{here}/{name}" for name in FILES}
    empty = {"type": "tmpfs", "source": "none", "options": ["ro", "size=4k"]}
    folder = [f"size={locks.FOLDER_BYTES}", "mode=1777", "nosuid", "nodev", "noexec"]
    return [
        *({"destination": path} | empty for path in ("/proc", "/sys", "/tmp")),
        {"destination": "/dev", "type": "dev", "source": "none", "options": ["ro"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "none", "options": ["ro"]},
        {"destination": locks.FOLDER, "type": "tmpfs", "source": "none", "options": folder},
        *(
            {"destination": inside, "type": "bind", "source": outside, "options": ["ro", "rbind", "nosuid", "nodev"]}
            for inside, outside in binds.items()
            if os.path.exists(outside)
        ),
    ]


def interpreter() -> str:
    """Return the path of this interpreter's executable, outside of a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def specification(code: str) -> dict[str, Any]:
    """Return the container that runs Python code as nobody, with HOME as its environment and no capabilities.

    Source: Open Container Initiative, runtime specification 1.0.
    """
    return {
        "ociVersion": "1.0.0",
        "hostname": "sandbox",
        "root": {"path": "rootfs", "readonly": True},
        "mounts": mounts(),
        "process": {
            "args": [interpreter(), "-I", "-S", "-X", "utf8", "-c", code],
            "env": [],
            "cwd": locks.FOLDER,
            "user": {"uid": NOBODY, "gid": NOBODY},
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }


def run(runsc: str, code: str, pipes: Sequence[int]) -> NoReturn:
    """Become `runsc` with a container that runs Python code and has this process's stdin, stdout, stderr and pipes.

    What `runsc` writes lies in a tmpfs that this process and its children alone see, and is gone when they are.

    Args:
        code: `START` and a call runs a function of `sandbox_child`.
        pipes: file descriptors of this process; the container has them as 3, 4, ...
    """
    os.dup2(os.open("/proc/self/fd/0", os.O_RDONLY), 0)  # the program's file, not to be written to
    folder = locks.own_folder(may_execute=True)
    if folder is None:
        raise OSError("this system permits no mount in a user namespace of its own")
    os.mkdir("rootfs")
    with open("config.json", "w") as file:
        json.dump(specification(code), file)
    resource.setrlimit(resource.RLIMIT_DATA, (KERNEL_HEAP_BYTES, KERNEL_HEAP_BYTES))
    passed = []
    for inside, fd in enumerate(pipes, start=3):
        os.set_inheritable(fd, True)
        passed += ["--pass-fd", f"{fd}:{inside}"]
    locks.die_with_parent()  # a new user namespace may have undone it
    settings = f"--rootless --network=none --ignore-cgroups --overlay2=none --root={folder}/state"
    settings += " --file-access-mounts=exclusive"  # nobody else writes to them, so their names are cached
    os.execve(runsc, [runsc, *settings.split(), "run", "--bundle", folder, *passed, "program"], {})
