"""A result names its code: the commit, and what was changed since, as a patch that brings the changes back."""

import hashlib
import subprocess
from pathlib import Path

import pytest
import toy

from raychat import paths, provenance
from raychat.report.figures import stage_figures
from raychat.report.tables import tables_of
from raychat.train.run import run_stage


def git(folder: Path, *command: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *identity, *command], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one committed file of code."""
    root = tmp_path / "checkout"
    (root / "raychat").mkdir(parents=True)
    (root / "raychat" / "a.py").write_text("x = 1\n")
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "first")
    return root


def test_committed_code_is_clean(checkout: Path, tmp_path: Path) -> None:
    (checkout / "notes.txt").write_text("no code\n")
    assert provenance.uncommitted(checkout) == b""
    recorded = provenance.record(str(tmp_path), checkout)
    assert recorded["dirty"] is False
    assert not {"diff", "diff_sha256"} & recorded.keys()
    assert recorded["versions"]["torch"]
    assert recorded["versions"]["raychat-bpe"]


def test_patch_brings_changes_and_new_files_back(checkout: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", str(checkout), "other")
    (checkout / "raychat" / "a.py").write_text("x = 2\n")
    (checkout / "raychat" / "ä b.py").write_text("y = 3\n")
    (checkout / "raychat" / "c.bin").write_bytes(bytes(range(256)))
    recorded = provenance.record(str(tmp_path / "stage"), checkout)
    saved = (tmp_path / "stage" / recorded["diff"]).read_bytes()
    assert recorded["dirty"] is True
    assert recorded["diff_sha256"] == hashlib.sha256(saved).hexdigest()
    git(tmp_path / "other", "apply", str(tmp_path / "stage" / recorded["diff"]))
    for name in ("a.py", "ä b.py", "c.bin"):
        assert (tmp_path / "other" / "raychat" / name).read_bytes() == (checkout / "raychat" / name).read_bytes()


def test_large_changes_are_only_hashed(checkout: Path, tmp_path: Path) -> None:
    (checkout / "raychat" / "table.py").write_text("# 0123456789\n" * 100_000)
    recorded = provenance.record(str(tmp_path / "stage"), checkout)
    assert recorded["dirty"] is True
    assert len(recorded["diff_sha256"]) == 64
    assert "diff" not in recorded
    assert not paths.names(str(tmp_path / "stage"))


def test_without_a_repository_nothing_is_claimed(tmp_path: Path) -> None:
    recorded = provenance.record(str(tmp_path), tmp_path)
    assert recorded["dirty"] is None


def test_summary_of_a_stage_has_its_provenance(tmp_path: Path) -> None:
    summary = run_stage(toy.token_stage(tmp_path, "one"), lambda row: None)
    recorded = summary["provenance"]
    assert recorded["versions"] == provenance.versions()
    assert recorded["machine"] == provenance.machine()
    assert recorded["commit"] == provenance.commit()
    assert stage_figures(summary, {}, [], None)["provenance"] == recorded


def test_report_names_the_code_of_each_stage() -> None:
    same = {"versions": {"torch": "2.13"}, "machine": provenance.machine()}
    clean = {"commit": "abc1234", "dirty": False, **same}
    changed = {"commit": "abc1234", "dirty": True, "diff_sha256": "0" * 64, "diff": "code-00000000.diff", **same}
    stages = {name: stage_figures({"provenance": p}, {}, [], None) for name, p in (("base", clean), ("sft", clean))}
    report = {"stages": stages, "tokenizer": None, "model": None, **same}
    report["total"] = {"price": None, "price_per_hour": None, "wall_s": 0, "eval_wall_s": 0}
    assert made_with(report)["code"] == "commit abc1234"
    assert made_with(report)["versions"] == "torch 2.13"
    stages["rl"] = stage_figures({"provenance": changed}, {}, [], None)
    assert made_with(report)["code"] == (
        "BASE, SFT: commit abc1234; RL: commit abc1234 with changes (sha256 00000000, code-00000000.diff in the "
        "stage's folder)"
    )


def made_with(report: dict[str, object]) -> dict[str, str]:
    (table,) = [table for table in tables_of(report) if table.title == "Made with"]
    return dict(table.rows)
