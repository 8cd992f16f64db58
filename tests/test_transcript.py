"""A driver's terminal, kept in a file."""

import sys
from pathlib import Path

import pytest
from rich.console import Console

from raychat import paths
from raychat.transcript import transcript


@pytest.mark.parametrize("root", ["{folder}", "memory://{name}"])
def test_what_is_printed_is_also_in_the_file(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = paths.join(root.format(folder=tmp_path, name=tmp_path.name), "stage", "log.txt")
    for run in ("first", "second"):  # as after a kill
        with transcript(path):
            print(f"{run}: loss 2.5")
            print("\x1b[36m(worker)\x1b[0m it warns", file=sys.stderr)
    print("later")
    assert paths.read_text(path) == "first: loss 2.5\n(worker) it warns\nsecond: loss 2.5\n(worker) it warns\n"
    printed = capsys.readouterr()
    assert printed.out == "first: loss 2.5\nsecond: loss 2.5\nlater\n"
    assert printed.err.count("\x1b[36m(worker)\x1b[0m it warns\n") == 2


def test_bars_are_left_out(tmp_path: Path) -> None:
    path = str(tmp_path / "log.txt")
    with transcript(path):
        sys.stderr.write("\r\x1b[2K  3/10")
        Console(force_terminal=True, color_system="standard").print("[red]done[/red]")
    assert paths.read_text(path) == "done\n"


def test_a_full_disk_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with transcript(str(tmp_path / "log.txt")):
        print("it goes on")
    assert capsys.readouterr().out == "it goes on\n"


def test_the_streams_are_put_back_after_an_error(tmp_path: Path) -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(ValueError, match="no"), transcript(str(tmp_path / "log.txt")):
        raise ValueError("no")
    assert (sys.stdout, sys.stderr) == before
