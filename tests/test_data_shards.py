from pathlib import Path
from threading import Timer

import numpy as np
import pytest

from raychat import paths
from raychat.data.shards import (
    FAILED_FILE,
    BlockCounts,
    Plan,
    TokenRows,
    counts,
    rows_by_block,
    write_block,
    write_plan,
)

T = 7


def plan(num_blocks: int, masked: bool = False) -> Plan:
    return Plan(num_blocks, sequence_len=T, vocab_size=1000, masked=masked, inputs="test")


def numbered(first: int, num_rows: int) -> np.ndarray:
    """Rows whose tokens say which row it is."""
    return np.repeat(np.arange(first, first + num_rows, dtype=np.uint16)[:, None], T + 1, axis=1)


def folder_of(folder: str, row_counts: list[int], only: list[int] | None = None) -> str:
    write_plan(folder, plan(len(row_counts)))
    for block, num_rows in enumerate(row_counts):
        if only is None or block in only:
            write_block(folder, block, numbered(sum(row_counts[:block]), num_rows))
    return folder


@pytest.mark.parametrize("root", ["local", "memory://tokens"])
def test_rows_are_the_same_by_any_grouping(root: str, tmp_path: Path) -> None:
    folder = folder_of(str(tmp_path) if root == "local" else f"{root}/{tmp_path.name}", [3, 0, 2, 4, 0])
    rows = TokenRows(folder)
    assert rows.num_rows() == rows.available() == 9
    tokens, mask = rows.rows(np.array([8, 0, 3, 2, 3]))
    assert tokens.dtype == np.int64
    assert tokens.tolist() == np.repeat([[8], [0], [3], [2], [3]], T + 1, axis=1).tolist()
    assert mask.dtype == bool
    assert mask.all()
    assert rows.num_valid([8, 0, 3]) == 3 * T


def test_rows_go_round_when_the_folder_is_complete(tmp_path: Path) -> None:
    rows = TokenRows(folder_of(str(tmp_path), [2, 3]))
    assert rows.rows([4, 5, 12, 5_000_000_001])[0][:, 0].tolist() == [4, 0, 2, 1]


def test_masks_are_read_back_and_counted(tmp_path: Path) -> None:
    write_plan(str(tmp_path), plan(1, masked=True))
    written = np.zeros((2, 2, T + 1), dtype=np.uint16)
    written[0] = [[1, *[7] * T], [0, *[1] * T]]
    written[1, :, :3] = [[1, 5, 6], [1, 1, 0]]  # the first token of a row is never a target
    write_block(str(tmp_path), 0, written)
    rows = TokenRows(str(tmp_path))
    tokens, mask = rows.rows([0, 1])
    assert tokens.tolist() == written[:, 0].tolist()
    assert mask.tolist() == written[:, 1].astype(bool).tolist()
    assert [rows.num_valid([i]) for i in (0, 1)] == [7, 1]
    assert rows.num_valid([0, 1, 2]) == 15  # row 2 is row 0 again


def test_caller_may_change_what_it_got(tmp_path: Path) -> None:
    rows = TokenRows(folder_of(str(tmp_path), [2]))
    tokens, mask = rows.rows([1])
    tokens[:], mask[:] = 9, False
    assert rows.rows([1])[0].tolist() == [[1] * (T + 1)]


def test_only_blocks_before_the_first_missing_one_are_available(tmp_path: Path) -> None:
    folder = folder_of(str(tmp_path), [2, 2, 2, 2], only=[0, 1, 3])
    rows = TokenRows(folder, wait_s=0.3)
    assert rows.available() == 4
    assert rows.rows([3])[0][0, 0] == 3
    with pytest.raises(TimeoutError, match=r"row 4 .* 2 of 4 blocks"):
        rows.rows([4])
    write_block(folder, 2, numbered(4, 2))
    assert rows.available() == 8


def test_waits_for_rows_that_are_still_being_made_and_logs_it(tmp_path: Path) -> None:
    folder, logged = str(tmp_path / "tokens"), list[str]()
    Timer(0.3, folder_of, (folder, [2, 2], [0])).start()
    rows = TokenRows(folder, wait_s=20, log=logged.append)
    Timer(1.5, write_block, (folder, 1, numbered(2, 2))).start()
    assert rows.rows([0, 2])[0][:, 0].tolist() == [0, 2]
    assert len(logged) == 1
    assert "row 2" in logged[0]
    assert "1 of 2 blocks" in logged[0]


def test_wrapping_waits_for_the_complete_folder(tmp_path: Path) -> None:
    folder = folder_of(str(tmp_path), [2, 2], only=[0])
    Timer(0.3, write_block, (folder, 1, numbered(2, 2))).start()
    assert TokenRows(folder).rows([6])[0][0, 0] == 2


def test_failure_of_the_maker_is_raised_with_its_cause(tmp_path: Path) -> None:
    folder = folder_of(str(tmp_path), [2, 2], only=[0])
    rows = TokenRows(folder)
    paths.write_text(paths.join(folder, FAILED_FILE), "ValueError: line 7 of x.jsonl has no text")
    assert rows.rows([1])[0][0, 0] == 1  # what is there can be read
    with pytest.raises(RuntimeError, match="line 7"):
        rows.rows([2])


def test_folder_without_a_row_is_an_error(tmp_path: Path) -> None:
    rows = TokenRows(folder_of(str(tmp_path), [0, 0]))
    assert rows.num_rows() == 0
    with pytest.raises(ValueError, match="no row"):
        rows.rows([0])


def test_negative_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not negative"):
        TokenRows(folder_of(str(tmp_path), [2])).rows([-1])


def test_a_folder_keeps_its_plan(tmp_path: Path) -> None:
    write_plan(str(tmp_path), plan(2))
    write_plan(str(tmp_path), plan(2))
    with pytest.raises(ValueError, match="another plan"):
        write_plan(str(tmp_path), plan(3))


def test_block_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_plan(str(tmp_path), plan(1))
    write_block(str(tmp_path), 0, np.zeros((2, T), np.uint16))
    with pytest.raises(ValueError, match="shape"):
        TokenRows(str(tmp_path)).rows([0])


def test_block_that_is_cut_is_named_with_the_remedy(tmp_path: Path) -> None:
    folder = folder_of(str(tmp_path), [2])
    (path,) = tmp_path.glob("*.npy")
    whole = path.read_bytes()
    for end in (0, 20, len(whole) - 3):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=rf"{path.name} is damaged or cut short \(.*\); remove it"):
            TokenRows(folder).rows([0])


def test_counts_are_unknown_where_an_older_block_has_none() -> None:
    new = ["000000-00000002-5-120-1.npy", "000001-00000003-7-180-0.npy"]
    assert counts([*new, "plan.json"]) == BlockCounts(5, 12, 300, 1)
    assert rows_by_block(new) == {0: 2, 1: 3}
    assert counts([*new, "000002-00000007.npy"]) is None


def test_names_say_the_rows_of_each_block() -> None:
    assert rows_by_block(["000001-00000007.npy", "000000-00000000.npy", "plan.json"]) == {0: 0, 1: 7}
    with pytest.raises(ValueError, match="twice"):
        rows_by_block(["000001-00000007.npy", "000001-00000008.npy"])
