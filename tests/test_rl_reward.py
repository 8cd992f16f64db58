"""A user's own reward, and the problems of tasks that have none to train on."""

import importlib
import json
from pathlib import Path

import pytest

from raychat.rl.reward import load_reward, task_for
from raychat.tasks import Problem

PROBLEM = Problem([{"role": "user", "content": "a?"}, {"role": "assistant", "content": "a"}])


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"rewards_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "def brief(problem, text):\n    return 1 / (1 + len(text))\n"
        "def none(problem, text):\n    return None\n"
        "def infinite(problem, text):\n    return float('inf')\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return name


def test_own_reward_is_called(module: str) -> None:
    assert load_reward(f"{module}:brief")(PROBLEM, "abc") == 0.25


@pytest.mark.parametrize("name", ["none", "infinite"])
def test_reward_that_is_no_finite_number_is_an_error(module: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"{module}:{name} returned .* for the answer 'abc'; expected a finite number"):
        load_reward(f"{module}:{name}")(PROBLEM, "abc")


def test_reward_that_cannot_be_imported_is_an_error(module: str) -> None:
    for name, message in {
        "brief": "expected module:function",
        f"{module}:": "expected module:function",
        f"{module}:absent": "cannot be imported: module .* has no attribute 'absent'",
        "no_such_module:f": "cannot be imported: No module named 'no_such_module'",
        f"{module}:number": "is a int; expected a function",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_reward(name)


def test_humaneval_is_halved_and_other_tasks_have_their_splits(tmp_path: Path) -> None:
    (tmp_path / "humaneval").mkdir()
    rows = [
        {
            "task_id": str(i),
            "prompt": f"def f{i}():\n",
            "entry_point": f"f{i}",
            "canonical_solution": "    return 1\n",
            "test": "def check(f):\n    assert f() == 1\n",
        }
        for i in range(6)
    ]
    import gzip

    with gzip.open(tmp_path / "humaneval" / "HumanEval.jsonl.gz", "wt") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    halves = [task_for(("humaneval",), str(tmp_path), split) for split in ("train", "test")]
    asked = [{problem.messages[0]["content"] for problem in half.problems} for half in halves]
    assert [len(half) for half in asked] == [3, 3]
    assert not asked[0] & asked[1]

    own = task_for(("humaneval",), str(tmp_path), "train", lambda problem, text: 7.0)
    assert own.reward(PROBLEM, "x") == 7.0
