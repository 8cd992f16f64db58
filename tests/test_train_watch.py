"""The rows of a stage: which losses are spikes, what is reported."""

from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from raychat.log import MetricsLog, read_metrics
from raychat.train.watch import Clock, Rows, Spikes


def test_a_loss_far_above_the_noise_is_a_spike() -> None:
    noise = torch.randn(500, generator=torch.Generator().manual_seed(0)).mul(0.1).add(3.0).tolist()
    spikes = Spikes()
    assert not any(spikes.is_spike(loss) for loss in noise)
    assert [spikes.is_spike(loss) for loss in (3.8, 2.0, 3.8)] == [True, False, True]


@pytest.mark.parametrize("losses", [[3.0] * 50, [1.0, 2.0] * 4])  # no noise to compare with; too few
def test_nothing_is_a_spike_without_knowing_the_noise(losses: list[float]) -> None:
    assert not Spikes(losses).is_spike(100.0)


def test_a_new_level_is_a_spike_for_half_a_window_only() -> None:
    spikes = Spikes([3.0, 3.1] * 25)
    marked = [spikes.is_spike(9.0 + 0.1 * (i % 2)) for i in range(50)]
    assert all(marked[:20])
    assert not any(marked[30:])


@pytest.mark.parametrize(("loss", "mark"), [(9.0, {"loss": 9.0, "spike": True}), (float("nan"), {"skipped": 2})])
def test_spikes_and_skipped_steps_are_reported_at_once(tmp_path: Path, loss: float, mark: dict[str, Any]) -> None:
    reported: list[dict[str, Any]] = []
    log = MetricsLog(str(tmp_path), start=0, name="test/one", settings={})
    clock = Clock(0, toy.model(), torch.device("cpu"))
    rows = Rows(log, reported.append, clock, Spikes([2.0, 2.1, 2.2] * 5), every_s=1e9, spent_s=0.0)
    rows.add_step(1, 2.0, {}, last=False)
    rows.add_step(2, loss, {"skipped": 2} if "skipped" in mark else {}, last=False)
    (row,) = reported
    assert {key: value for key, value in row.items() if key != "t"} == {"step": 2, **mark}
    assert [r["step"] for r in read_metrics(str(tmp_path))] == [1, 2]


def test_the_clock_does_not_wait_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop has waited, when it read the loss."""

    def synchronize(*_: object) -> None:
        raise AssertionError("a second wait in a step")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    figures = Clock(1000, toy.model(), torch.device("cuda")).tick()
    assert figures["tok_per_s"] > 0
    assert "mfu" in figures
