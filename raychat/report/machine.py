"""The machine and the software that made the report."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from raychat.checkpoint import commit

PACKAGES = ("raychat", "torch", "ray", "tiktoken", "numpy")
CPUINFO = Path("/proc/cpuinfo")  # on Linux


def machine() -> dict[str, Any]:
    """Describe this machine; on a cluster that is the driver's."""
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
    """Return the versions of Python, of the packages that matter, and the commit of this code; None = unknown."""
    installed = {package.name: package.version for package in importlib.metadata.distributions()}
    packages = {name: installed.get(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages, "commit": commit()}
