"""Predictions of batches against every sequence alone."""

import pytest
import torch
from tiny import random_model

from raychat.evals.scoring import predictions

GROUPS = [[[5, 6, 7, 8], [5, 6, 9]], [list(range(100))], [[1]], [list(range(90)), list(range(1, 90))], [[5, 6], [5, 6]]]
COUNTS = [[2, 1], [100], [1], [3, 89], [1, 2]]


@pytest.mark.parametrize("batch_tokens", [1, 120, 10_000])
def test_they_are_those_of_each_sequence_alone(batch_tokens: int) -> None:
    model, found = random_model(), {}
    for sequences, logits in predictions(model, GROUPS, COUNTS, batch_tokens):
        sizes = [COUNTS[group][i] for group, i in sequences]
        found |= dict(zip(sequences, logits.split(sizes), strict=True))
    assert sorted(found) == [(i, j) for i, group in enumerate(GROUPS) for j in range(len(group))]
    for (i, j), logits in found.items():
        with torch.no_grad():
            alone = model(torch.tensor([GROUPS[i][j]]))[0, -COUNTS[i][j] :]
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)  # other shapes: other rounding


def test_no_row_is_longer_than_the_context_and_batches_are_full() -> None:
    """The two sequences of a group that differ at once do not fit side by side."""
    shapes: list[tuple[int, ...]] = []
    model = random_model()
    model.wte.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    list(predictions(model, [[list(range(90)), list(range(1, 91))], [[1, 2], [1, 3]]], [[1, 1], [1, 1]], 180))
    assert (2, 90) in shapes
    assert max(shape[-1] for shape in shapes if shape[0] > 1) <= 90


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 160 tokens, got 0 to 161"):
        list(predictions(random_model(), [[[], [0] * 161]], [[1, 1]], 100))
    with pytest.raises(ValueError, match="1 to 160 tokens, got 0 to 1"):
        list(predictions(random_model(), [[[]], [[0]]], [[1], [1]], 100))
