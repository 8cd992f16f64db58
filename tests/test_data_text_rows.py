"""Rows of one text: what an epoch shows, and that a row depends on its number and the seed alone."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from raychat.data import shards
from raychat.data.shards import TokenRows
from raychat.data.text_rows import training_rows

T, BOS = 8, 999


def stored(folder: Path, num_rows: int, one_text: bool = True) -> str:
    """Write rows whose tokens count upwards."""
    shards.write_plan(str(folder), shards.Plan(1, T, BOS + 1, masked=False, inputs="counting", one_text=one_text))
    rows = np.full((num_rows, T + 1), BOS, dtype=np.uint16)
    rows[:, 1:] = np.arange(num_rows * T).reshape(num_rows, T)
    shards.write_block(str(folder), 0, rows)
    return str(folder)


def epoch_of(folder: str, number: int, num_rows: int, seed: int = 0) -> np.ndarray:
    tokens, mask = training_rows(folder, seed).rows(np.arange(number * num_rows, (number + 1) * num_rows))
    assert mask.all()
    assert (tokens[:, 0] == BOS).all()
    return tokens[:, 1:]


def test_an_epoch_shows_every_token_at_most_once_in_rows_of_the_text(tmp_path: Path) -> None:
    folder = stored(tmp_path, 20)
    for number in range(4):
        rows = epoch_of(folder, number, 19)
        assert (np.diff(rows, axis=1) == 1).all()
        shown = np.sort(rows.ravel())
        assert (np.diff(shown) == 1).all()  # consecutive, none twice
        assert len(shown) == 19 * T


def test_epochs_and_seeds_differ_in_cuts_and_order(tmp_path: Path) -> None:
    folder = stored(tmp_path, 20)
    epochs = [epoch_of(folder, number, 19) for number in range(6)]
    assert len({int(rows[0, 0]) % T for rows in epochs}) > 2
    assert all((a != b).any() for a, b in pairwise(epochs))
    assert all((np.diff(rows[:, 0]) < 0).any() for rows in epochs)  # shuffled
    assert (epochs[0] != epoch_of(folder, 0, 19, seed=1)).any()


def test_a_row_depends_on_its_number_alone(tmp_path: Path) -> None:
    folder = stored(tmp_path, 20)
    together, _ = training_rows(folder, 0).rows(np.arange(60))
    order = np.random.default_rng(0).permutation(60)
    store = training_rows(folder, 0)
    alone = [store.rows(np.array([i]))[0][0] for i in order.tolist()]
    assert (np.array(alone) == together[order]).all()


@pytest.mark.parametrize("num_rows", [1, 2])
def test_a_text_of_a_row_or_two(tmp_path: Path, num_rows: int) -> None:
    tokens = epoch_of(stored(tmp_path, num_rows), 0, 1)
    assert (np.diff(tokens) == 1).all()
    assert (tokens[0, 0] == 0) or num_rows == 2


def test_rows_of_documents_stay_as_they_are(tmp_path: Path) -> None:
    folder = stored(tmp_path, 20, one_text=False)
    indices = np.arange(25)
    assert (training_rows(folder, 0).rows(indices)[0] == TokenRows(folder).rows(indices)[0]).all()
