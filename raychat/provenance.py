"""Where a result comes from: the code, its uncommitted changes, the packages and the machine."""

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from raychat import paths

PACKAGES = ("raychat", "raychat-bpe", "torch", "ray", "tiktoken", "numpy")
CPUINFO = Path("/proc/cpuinfo")  # on Linux
ROOT = Path(__file__).parent.parent  # of the checkout
CODE = ("raychat", "jobs", "tokenizer", "pyproject.toml", "constraints.txt")  # what a run depends on
DIFF = ("diff", "--binary", "--no-ext-diff", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")  # for `git apply`
MAX_DIFF_BYTES = 2**20  # of changes that are saved, and not only hashed


def record(folder: str, root: Path = ROOT) -> dict[str, Any]:
    """Return what a stage runs with, and save uncommitted changes of the code as `code-<hash>.diff` in its folder.

    `dirty` is None where git does not know.
    """
    changes = uncommitted(root)
    found: dict[str, Any] = {"commit": commit(), "dirty": None if changes is None else bool(changes)}
    if changes:
        found["diff_sha256"] = digest = hashlib.sha256(changes).hexdigest()
        if len(changes) <= MAX_DIFF_BYTES:
            found["diff"] = f"code-{digest[:8]}.diff"
            paths.write_bytes(paths.join(folder, found["diff"]), changes)
    return found | {"versions": versions(), "machine": machine()}


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Return the git commit of this code; None = unknown."""
    found = _git(ROOT, "rev-parse", "--short", "HEAD")
    return found.decode().strip() if found else None


def uncommitted(root: Path) -> bytes | None:
    """Return what differs from the commit in a checkout's code, as a patch, new files included; None = unknown."""
    changed = _git(root, *DIFF, "HEAD", "--", *CODE)
    new = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE)
    if changed is None or new is None:
        return None
    names = [name for name in new.decode().split("\0") if name]
    added = [_git(root, *DIFF, "--no-index", "--", os.devnull, name) or b"" for name in names]
    return b"".join([changed, *added])


def _git(root: Path, *command: str) -> bytes | None:
    """Return what git prints; None where it is missing, slow, or finds no repository."""
    try:
        done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode in (0, 1) else None  # 1 = there are differences


def machine() -> dict[str, Any]:
    """Describe this machine."""
    try:
        memory_gib = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (OSError, ValueError):  # unknown on this system
        memory_gib = None
    cpu = re.search(r"^model name\s*: (.+)", CPUINFO.read_text("utf-8"), re.MULTILINE) if CPUINFO.exists() else None
    return {
        "system": platform.platform(terse=True),
        "cpu": cpu[1] if cpu else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": memory_gib,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that matter; None = not installed."""
    installed = {name: next(iter(importlib.metadata.distributions(name=name)), None) for name in PACKAGES}
    found = {name: package.version if package else None for name, package in installed.items()}
    return {"python": platform.python_version(), **found}
