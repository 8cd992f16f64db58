"""What is asked of the device: of the one that is given, whichever is the current one."""

import platform
import resource
import subprocess
import sys

import pytest
import torch

from raychat.device import compute_dtype, product_dtype, training_dtype

CAPABILITIES = [(9, 0), (7, 0), (7, 5), (8, 0)]  # H100, V100, T4, A100: the first is the current one


@pytest.mark.parametrize("index", range(len(CAPABILITIES)))
def test_bf16_is_for_gpus_that_compute_in_it(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: CAPABILITIES[device.index])
    expected = torch.float32 if index in (1, 2) else torch.bfloat16
    assert compute_dtype(torch.device("cuda", index)) == expected


def test_a_cpu_computes_in_fp32() -> None:
    assert compute_dtype(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(("wanted", "expected"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_training_computes_in_the_dtype_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, wanted: str, expected: torch.dtype
) -> None:
    monkeypatch.setenv("RAYCHAT_DTYPE", wanted)
    assert training_dtype(torch.device("cpu")) == expected


def test_training_computes_as_all_else_does_where_no_dtype_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCHAT_DTYPE", "")
    assert training_dtype(torch.device("cpu")) == compute_dtype(torch.device("cpu"))


@pytest.mark.parametrize(("has_amx", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_muon_multiplies_in_bf16_on_cpus_that_are_fast_at_it(
    monkeypatch: pytest.MonkeyPatch, has_amx: bool, expected: torch.dtype
) -> None:
    monkeypatch.setenv("RAYCHAT_DTYPE", "")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_amx})
    assert product_dtype(torch.device("cpu")) == expected


@pytest.mark.parametrize(("wanted", "expected"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_muon_multiplies_in_the_dtype_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, wanted: str, expected: torch.dtype
) -> None:
    monkeypatch.setenv("RAYCHAT_DTYPE", wanted)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert product_dtype(torch.device("cpu")) == expected


def test_muon_multiplies_in_the_dtype_of_all_else_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCHAT_DTYPE", "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: CAPABILITIES[device.index])
    assert product_dtype(torch.device("cuda", 0)) == torch.bfloat16
    assert product_dtype(torch.device("cuda", 1)) == torch.float32


def test_unknown_dtype_is_refused_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCHAT_DTYPE", "bf16")
    with pytest.raises(ValueError, match="RAYCHAT_DTYPE is 'bf16', expected bfloat16 or float32"):
        training_dtype(torch.device("cpu"))


FAULTS_OF_TENSORS = """
import resource
import torch
from raychat.device import default_device
def make_tensors():
    for _ in range(20):
        torch.zeros(100 << 20, dtype=torch.uint8)
default_device()
make_tensors()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
make_tensors()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
@pytest.mark.skipif(torch.cuda.is_available(), reason="memory is kept where the CPU computes")
def test_freed_tensors_stay_in_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS_OF_TENSORS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < (100 << 20) // resource.getpagesize()  # the pages of one of the 20 tensors
