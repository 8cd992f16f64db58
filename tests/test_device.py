"""What is asked of the device: of the one that is given, whichever is the current one."""

import pytest
import torch

from raychat.device import compute_dtype

CAPABILITIES = [(9, 0), (7, 0), (7, 5), (8, 0)]  # H100, V100, T4, A100: the first is the current one


@pytest.mark.parametrize("index", range(len(CAPABILITIES)))
def test_bf16_is_for_gpus_that_compute_in_it(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: CAPABILITIES[device.index])
    expected = torch.float32 if index in (1, 2) else torch.bfloat16
    assert compute_dtype(torch.device("cuda", index)) == expected


def test_a_cpu_computes_in_fp32() -> None:
    assert compute_dtype(torch.device("cpu")) == torch.float32
