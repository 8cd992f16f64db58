"""Continuations by a checkpoint, and what is refused."""

from pathlib import Path

import pytest
import toy
from tiny import byte_tokenizer, scripted_model

from jobs.sample import Args, run
from raychat.checkpoint import save_checkpoint

TOKENIZER = byte_tokenizer()
ENDS = [ord("d"), TOKENIZER.bos]  # after a "d" comes the end


@pytest.fixture(autouse=True)
def checkpoints(raychat_home: Path) -> None:
    """Two steps: the older one counts on from a letter, the newer one ends after it."""
    folder = str(raychat_home / "runs" / "r" / "base")
    for step, script in ((1, [*b"abcd"]), (2, [*b"ab", TOKENIZER.bos])):
        model = scripted_model([script, ENDS] if step == 1 else [script])
        save_checkpoint(folder, model, None, TOKENIZER, toy.meta(step, model), keep=0)


def test_the_newest_checkpoint_continues_until_it_ends_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Args(run="r", start="za", num_samples=2, temperature=0)) == ["zab", "zab"]
    assert capsys.readouterr().out.count("zab\n-----") == 2


def test_an_older_step_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "start.txt").write_text("a")
    start = f"FILE:{tmp_path / 'start.txt'}"
    assert run(Args(run="r", step=1, start=start, num_samples=1, temperature=0)) == ["abcd"]
    assert run(Args(run="r", step=1, start=start, num_samples=1, temperature=0, max_new_tokens=2)) == ["abc"]


def test_a_text_goes_on_beyond_the_context(raychat_home: Path) -> None:
    model = scripted_model([[*b"abc"], [*b"ca"]], sequence_len=8)
    save_checkpoint(str(raychat_home / "runs" / "long" / "base"), model, None, TOKENIZER, toy.meta(1, model))
    assert run(Args(run="long", start="ab", num_samples=2, temperature=0, max_new_tokens=30)) == ["ab" + "cab" * 10] * 2


def test_a_seed_gives_the_same_samples_which_differ() -> None:
    seeded = Args(run="r", start="z", num_samples=3, temperature=9.0, max_new_tokens=20, seed=5)
    first = run(seeded)
    assert run(seeded) == first
    assert len(set(first)) == 3


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"run": "other"}, "no checkpoint of the stage base .*other"),
        ({"step": 3}, "r-base has no checkpoint of step 3; it has 1, 2"),
        ({"stage": "rl"}, "no checkpoint of the stage rl "),
        ({"num_samples": 0}, "num-samples is 0; expected 1 or more"),
        ({"start": "a" * 128}, "context"),
    ],
)
def test_what_cannot_be_done_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(Args(**({"run": "r"} | wrong)))
