"""Rows with branches against every sequence alone, on all models."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny import first_generation, gpt2, random_model

from raychat.model.branches import hidden, row_of, shared_prefix

MODELS = [random_model, first_generation, gpt2]


def sequences(shared: int, ends: list[int], seed: int = 0) -> list[list[int]]:
    """Sequences of random ids with a common beginning and ends of these lengths; the first ids after it differ."""
    draw = np.random.default_rng(seed)
    beginning = draw.integers(0, 265, shared).tolist()
    return [[*beginning, *([i, *draw.integers(0, 265, end - 1).tolist()] if end else [])] for i, end in enumerate(ends)]


@pytest.mark.parametrize("build", MODELS)
def test_states_are_those_of_each_sequence_alone(build: Callable[[], Any]) -> None:
    """Also of short rows beside long ones, without branches, and behind the sliding window (128)."""
    model = build()
    groups = [sequences(9, [4, 1, 7]), sequences(130, [5, 20], seed=1), sequences(6, [0, 3], seed=2), [[7, 8, 9]]]
    rows = [row_of(group) for group in groups]
    found = hidden(model, rows)
    for number, (row, group) in enumerate(zip(rows, groups, strict=True)):
        for path, sequence in zip(row.paths, group, strict=True):
            with torch.no_grad():
                alone = model.hidden(torch.tensor([sequence]))[0]
            torch.testing.assert_close(found[number, path], alone, rtol=1e-4, atol=1e-4)  # other shapes: rounding


def test_common_beginning_is_there_once() -> None:
    row = row_of([[5, 6, 7], [5, 6, 8, 9], [5, 6]])
    assert row.ids == [5, 6, 7, 8, 9]
    assert row.positions == [0, 1, 2, 2, 3]
    assert row.branches == [0, 0, 1, 2, 2]
    assert row.paths == [[0, 1, 2], [0, 1, 3, 4], [0, 1]]


@pytest.mark.parametrize("rows", [[[1, 2], [1, 2, 3]], [[1, 2, 3], [1, 3, 0], [1, 2, 4]], [[4]], [[], [1]]])
def test_shared_prefix_is_what_all_begin_with(rows: list[list[int]]) -> None:
    shared = max(n for n in range(min(map(len, rows)) + 1) if all(row[:n] == rows[0][:n] for row in rows))
    assert shared_prefix(rows) == shared
