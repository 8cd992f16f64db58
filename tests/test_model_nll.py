"""The loss of many logits is computed in parts, and again in the backward pass: same numbers, little memory."""

import pytest
import torch
import toy
from tiny import gpt2
from torch import Tensor

from raychat.model import base
from raychat.model.base import Model

IDS = torch.randint(0, 250, (4, 33), generator=torch.Generator().manual_seed(0))
LOGITS = IDS[:, 1:].numel() * toy.VOCAB_SIZE


def pass_over(model: Model) -> tuple[Tensor, list[Tensor], int]:
    """Return the losses, the gradients of their weighted sum, and the entries of the largest tensor that was kept."""
    kept = [0]
    targets = IDS[:, 1:].clone()
    targets[1, 3:9] = -1

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        nll = model.nll(IDS[:, :-1], targets)
        (nll * torch.linspace(0.5, 1.5, nll.numel()).view_as(nll)).sum().backward()
    return nll.detach(), [p.grad for p in model.parameters() if p.grad is not None], max(kept)


@pytest.mark.parametrize("build", [toy.model, gpt2])
def test_parts_have_the_losses_and_gradients_of_the_whole(build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    model.train()
    monkeypatch.setattr(base, "MANY_LOGITS", LOGITS + 1)
    expected, gradients, kept = pass_over(model)
    assert kept >= LOGITS
    monkeypatch.setattr(base, "MANY_LOGITS", LOGITS)
    monkeypatch.setattr(base, "PART", 7)  # the last of 128 is smaller
    losses, in_parts, kept = pass_over(model)
    assert kept < LOGITS
    torch.testing.assert_close(losses, expected)
    assert len(in_parts) == len(gradients)
    for mine, whole in zip(in_parts, gradients, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-6)


def test_evaluation_computes_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = toy.model(), []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda x: sizes.append(x.shape[:-1].numel()) or logits(x))
    expected = model.nll(IDS[:, :-1], IDS[:, 1:]).detach()
    monkeypatch.setattr(base, "MANY_LOGITS", LOGITS)
    monkeypatch.setattr(base, "PART", 50)
    with torch.no_grad():
        torch.testing.assert_close(model.nll(IDS[:, :-1], IDS[:, 1:]), expected)
    assert sizes == [128, 50, 50, 28]
