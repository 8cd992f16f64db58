"""A stage around the loop: killed anywhere, it ends in the same weights; what it writes is complete."""

import contextlib
import gc
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import wandb

from raychat import checkpoint, paths
from raychat.checkpoint import checksums
from raychat.data.batches import Step, steps_of
from raychat.data.shards import TokenRows
from raychat.dist import World
from raychat.log import read_metrics
from raychat.model import registry
from raychat.optim import build_optimizer
from raychat.recipe import Runtime
from raychat.train.finetune import child_recipe
from raychat.train.finished import finished
from raychat.train.loop import train
from raychat.train.run import run_stage
from raychat.train.stage import Feed, Learner, Stage
from raychat.train.stop import Stopped
from raychat.train.token_feed import TokenSource

CPU = torch.device("cpu")


class Killed(Exception):
    pass


def run(work: Stage, report: Any = lambda row: None) -> dict[str, Any]:
    return run_stage(work, report)


def kill_at(step: int) -> Any:
    def report(row: dict[str, Any]) -> None:
        if row["step"] >= step:
            raise Killed

    return report


@pytest.fixture(autouse=True)
def report_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """And let every disk be quick, so that a kill finds the checkpoints of the steps before on any machine."""
    monkeypatch.setattr("raychat.train.run.LOG_EVERY_S", 0.0)
    monkeypatch.setattr("raychat.train.run.QUICK_S", 600.0)


def weights(folder: str, step: int = toy.STEPS) -> dict[str, torch.Tensor]:
    path = checkpoint.latest(folder)
    assert path is not None
    assert paths.name(path) == f"step_{step:06d}"
    return checkpoint.load_model(path, CPU)[0].state_dict()


@pytest.mark.parametrize("killed_at", [1, 4, 7])  # before the first checkpoint, between two, after the second
def test_killed_stage_ends_in_the_same_weights(tmp_path: Path, killed_at: int) -> None:
    whole, cut = toy.token_stage(tmp_path, "whole"), toy.token_stage(tmp_path, "cut")
    run(whole)
    with pytest.raises(Killed):
        run(cut, kill_at(killed_at))
    run(cut)
    expected, got = weights(whole.folder), weights(cut.folder)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert [r["loss"] for r in read_metrics(whole.folder) if "loss" in r] == [
        r["loss"] for r in read_metrics(cut.folder) if "loss" in r
    ]


def damage(file: Path) -> None:
    """Change a file's content and leave its size."""
    file.write_bytes(bytes(file.stat().st_size))


def test_stage_resumes_before_its_damaged_checkpoint_and_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole, cut = toy.token_stage(tmp_path, "whole"), toy.token_stage(tmp_path, "cut")
    run(whole)
    with pytest.raises(Killed):
        run(cut, kill_at(7))
    damage(Path(cut.folder, "step_000006", "optimizer_000.safetensors"))
    run(cut)
    expected, got = weights(whole.folder), weights(cut.folder)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert read_metrics(cut.folder)[-1]["step"] == toy.STEPS
    assert [paths.name(path) for path in checkpoint.all_in(cut.folder)] == ["step_000006", "step_000008"]
    assert checkpoint.latest_verified(cut.folder) == checkpoint.latest(cut.folder)


def test_stage_whose_last_checkpoint_was_torn_is_not_finished(tmp_path: Path) -> None:
    one = toy.token_stage(tmp_path, "one")
    summary = run(one)
    file = Path(summary["checkpoint"], "model.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:1000])
    assert finished(one.folder, one.recipe) is None
    again = run(one)
    assert file.read_bytes() == content
    assert finished(one.folder, one.recipe) == again


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer_000.safetensors", "tokenizer/tokenizer.json"])
def test_child_of_a_damaged_parent_is_refused(tmp_path: Path, file: str) -> None:
    parent = toy.token_stage(tmp_path, "parent")
    path = run(parent)["checkpoint"]
    child = replace(parent, name="test/child", recipe=child_recipe(path, str(tmp_path)))
    content = bytearray(Path(path, file).read_bytes())
    content[-8] ^= 1  # still well-formed
    Path(path, file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file}: got bytes of sha256"):
        run(child)
    if file.startswith("optimizer"):
        assert run(replace(child, fresh=True))["steps"] == toy.STEPS  # it takes no momenta
    else:
        with pytest.raises(ValueError, match=rf"{file}: got bytes of sha256"):
            run(replace(child, fresh=True))


@pytest.mark.parametrize("has_optimizer", [True, False])
def test_stage_whose_parent_is_gone_ends_in_the_same_weights(tmp_path: Path, has_optimizer: bool) -> None:
    parent = run(toy.token_stage(tmp_path, "parent"))["checkpoint"]
    if not has_optimizer:  # as one that was imported; so the schedule begins with a warm-up
        meta = checkpoint.read_meta(parent)
        model = checkpoint.load_model(parent, CPU)[0]
        parent = checkpoint.save_checkpoint(paths.parent(parent), model, None, toy.byte_tokenizer(), meta)
    recipe = child_recipe(parent, str(tmp_path))
    runtime = replace(toy.RUNTIME, save_every=1)
    whole, cut = (replace(toy.token_stage(tmp_path, name, runtime), recipe=recipe) for name in ("whole", "cut"))
    run(whole)
    with pytest.raises(Killed):
        run(cut, kill_at(3))
    paths.remove(paths.parent(parent))
    run(cut)
    for file in ("model", "optimizer_000"):
        name = f"step_{toy.STEPS:06d}/{file}.safetensors"
        assert paths.read_bytes(f"{cut.folder}/{name}") == paths.read_bytes(f"{whole.folder}/{name}")


def test_metrics_have_every_step_once_and_the_summary_the_end(tmp_path: Path) -> None:
    one = toy.token_stage(tmp_path, "one")
    rows: list[dict[str, Any]] = []
    summary = run(one, rows.append)
    logged = read_metrics(one.folder)
    assert [r["step"] for r in logged if "loss" in r] == list(range(1, toy.STEPS + 1))
    assert [r["step"] for r in logged if "val_bpb" in r] == [4, 8]
    assert rows[-1]["val_bpb"] == summary["val_bpb"]
    assert summary == paths.read_json(one.folder + "/summary.json")
    assert summary["tokens"] == toy.STEPS * 6 * toy.CONFIG.sequence_len
    assert summary["unigram_bpb"] > 0
    low, high = summary["interval"]["val_bpb"]
    assert low < summary["val_bpb"] < high
    kept = summary["outcomes"]["val_bpb"]
    assert sum(kept["nats"]) / sum(kept["bytes"]) / math.log(2) == pytest.approx(summary["val_bpb"], rel=1e-5)
    assert paths.name(summary["checkpoint"]) == "step_000008"


def test_a_stage_logs_to_wandb_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb, "init", lambda **settings: started.append(settings))
    monkeypatch.delenv("WANDB_MODE")
    run(toy.token_stage(tmp_path, "one", replace(toy.RUNTIME, wandb=True)))
    assert [(run["name"], run["config"]["batch_tokens"]) for run in started] == [("test/one", 192)]


def test_a_stage_logs_to_tensorboard_when_asked(tmp_path: Path) -> None:
    run(toy.token_stage(tmp_path, "one", replace(toy.RUNTIME, tensorboard=True)))
    assert list(tmp_path.glob("**/one/tensorboard/events.*"))


def test_no_step_collects_garbage_after_the_first(tmp_path: Path) -> None:
    enabled: list[bool] = []
    run(toy.token_stage(tmp_path, "one"), lambda row: enabled.append(gc.isenabled()))
    assert enabled[0]
    assert not any(enabled[1:])
    assert gc.isenabled()


def test_stage_trains_in_the_dtype_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setenv("RAYCHAT_DTYPE", dtype)
        work = toy.token_stage(tmp_path, dtype)
        run(work)
        losses.append([row["loss"] for row in read_metrics(work.folder) if "loss" in row])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_rows_of_a_micro_batch_follow_the_dtype_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYCHAT_DTYPE", "bfloat16")
    asked = toy.dtypes_of_rows(monkeypatch, "raychat.train.token_feed")
    run(toy.token_stage(tmp_path, "one", replace(toy.RUNTIME, device_rows=None)))
    assert asked == [torch.bfloat16]


def test_fp8_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--fp8 needs a GPU"):
        run(toy.token_stage(tmp_path, "one", replace(toy.RUNTIME, fp8=True)))


def test_metrics_on_an_object_store_have_no_gap_after_a_kill(tmp_path: Path) -> None:
    one = toy.token_stage(tmp_path, "one")
    one = replace(one, storage=f"memory://{tmp_path.name}")
    toy.byte_tokenizer().save(one.tokenizer)
    with pytest.raises(Killed):
        run(one, kill_at(7))  # long before the log's next upload
    run(one)
    assert [r["step"] for r in read_metrics(one.folder) if "loss" in r] == list(range(1, toy.STEPS + 1))


def test_stage_killed_between_its_last_checkpoint_and_its_summary_is_summed_up(tmp_path: Path) -> None:
    one = toy.token_stage(tmp_path, "one")
    summary = run(one)
    paths.remove(one.folder + "/summary.json")
    assert finished(one.folder, one.recipe) is None
    again = run(one)
    assert {k: v for k, v in again.items() if k != "wall_s"} == {k: v for k, v in summary.items() if k != "wall_s"}


def test_finished_stage_is_found_and_another_recipe_is_refused(tmp_path: Path) -> None:
    one = toy.token_stage(tmp_path, "one")
    assert finished(one.folder, one.recipe) is None
    summary = run(one)
    assert finished(one.folder, toy.recipe()) == summary
    with pytest.raises(ValueError, match="seed: there 0, now 1"):
        finished(one.folder, toy.recipe(seed=1))
    deeper = replace(one.recipe, model={**one.recipe.model, "n_layer": 3})
    with pytest.raises(ValueError, match=r"another recipe.*n_layer: there 2, now 3"):
        finished(one.folder, deeper)


def test_stage_resumes_with_another_runtime(tmp_path: Path) -> None:
    """Rows of a micro-batch, intervals and workers do not define the weights; they only change the rounding of sums."""
    whole, cut = toy.token_stage(tmp_path, "whole"), toy.token_stage(tmp_path, "cut")
    run(whole)
    with pytest.raises(Killed):
        run(cut, kill_at(4))
    run(replace(cut, runtime=Runtime(device_rows=3, eval_every=2, save_every=2)))
    meta = checkpoint.read_meta(checkpoint.latest(cut.folder) or "")
    assert asdict(meta.runtime) == asdict(Runtime(device_rows=3, eval_every=2, save_every=2, workers=1))
    assert [r["step"] for r in read_metrics(cut.folder) if "val_bpb" in r][-2:] == [6, 8]
    # sums over micro-batches of other sizes; Muon's five polynomial steps amplify their rounding
    torch.testing.assert_close(weights(cut.folder), weights(whole.folder), rtol=1e-2, atol=1e-3)


def test_rows_of_one_text_are_cut_for_training_and_as_stored_for_validation(tmp_path: Path) -> None:
    def feed_of(root: Path, one_text: bool) -> Feed:
        stage = toy.token_stage(root, "one")
        for name in ("train", "val"):
            plan = paths.read_json(file := str(root / name / "plan.json"))
            paths.write_json(file, plan | {"one_text": one_text})
        assert stage.source is not None
        return stage.source(Learner(stage, toy.model(), toy.byte_tokenizer(), CPU, torch.float32))

    feed = feed_of(tmp_path, one_text=True)
    given = torch.cat([batch.inputs for step in feed.steps(0) for batch in step.batches])
    stored = torch.from_numpy(TokenRows(str(tmp_path / "train")).rows(range(40))[0][:, :-1])
    assert len(given) == toy.STEPS * 6
    assert not any((row == stored).all(1).any() for row in given)
    assert feed.evaluate() == feed_of(tmp_path / "documents", one_text=False).evaluate()


def test_child_inherits_the_recipe_weights_and_momenta(tmp_path: Path) -> None:
    parent = toy.token_stage(tmp_path, "parent")
    run(parent)
    path = checkpoint.latest(parent.folder)
    assert path is not None
    recipe = child_recipe(path, str(tmp_path), seed=5, tasks=("gsm8k",))
    assert recipe == replace(
        parent.recipe, weight_decay=0.0, seed=5, tasks=("gsm8k",), parent="runs/test/parent/step_000008"
    )
    child = replace(parent, name="test/child", recipe=recipe, steps=1)
    run(child)
    first = next(r["loss"] for r in read_metrics(child.folder) if "loss" in r)
    last = [r["loss"] for r in read_metrics(parent.folder) if "loss" in r][-1]
    assert first < last + 0.5  # not the fresh model's ln 265
    # The first step of the child is the one that the parent's model and optimizer would have taken.
    model, _ = checkpoint.load_model(path, CPU)
    optimizer = build_optimizer(model, lr_scale=recipe.lr_scale, weight_decay=0.0)
    checkpoint.load_optimizer(path, optimizer)
    source = child.source
    assert isinstance(source, TokenSource)
    steps = steps_of(TokenRows(source.train), rows_per_step=6, device_rows=4, start=0, world=World(0, 1), device=CPU)
    train(model.train(), optimizer, steps, steps=1, schedule=child.schedule(1), nll=model.nll)
    got = weights(child.folder, step=1)
    for name, expected in model.state_dict().items():
        assert torch.equal(got[name], expected), name


@pytest.mark.parametrize(("keep", "steps"), [(2, [6, 8]), (0, [2, 4, 6, 8])])
def test_stage_keeps_as_many_checkpoints_as_it_is_told(tmp_path: Path, keep: int, steps: list[int]) -> None:
    one = toy.token_stage(tmp_path, "one", runtime=Runtime(device_rows=8, save_every=2, keep=keep))
    run(one)
    assert [checkpoint.read_meta(path).step for path in checkpoint.all_in(one.folder)] == steps


def change_steps(learner: Learner, *, source: Callable[[Learner], Feed], factors: dict[int, float]) -> Feed:
    """Open a source and multiply the loss of some steps (counted from 0)."""

    def steps(start: int) -> Iterator[Step]:
        for number, step in enumerate(whole(start), start):
            factor = factors.get(number, 1.0)
            yield step._replace(batches=[b._replace(weights=b.weights * factor) for b in step.batches])

    feed = source(learner)
    whole, feed.steps = feed.steps, steps  # type: ignore[method-assign]
    return feed


def changed(tmp_path: Path, name: str, factors: dict[int, float], runtime: Runtime = toy.RUNTIME) -> Stage:
    one = toy.token_stage(tmp_path, name, runtime)
    assert one.source is not None
    return replace(one, source=partial(change_steps, source=one.source, factors=factors))


def at_step(number: int) -> Callable[[], bool]:
    """Return what is True when it is asked for the `number`-th time."""
    asked = itertools.count(1)
    return lambda: next(asked) == number


def same_weights(a: Stage, b: Stage) -> bool:
    expected, got = weights(a.folder), weights(b.folder)
    return all(torch.equal(expected[name], got[name]) for name in expected)


def test_stopped_stage_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole, cut = toy.token_stage(tmp_path, "whole"), toy.token_stage(tmp_path, "cut")
    run(whole)
    with pytest.raises(Stopped, match="test/cut: stopped at step 5 of 8; the same command continues"):
        run_stage(cut, lambda row: None, stop=at_step(5))
    assert [paths.name(path) for path in checkpoint.all_in(cut.folder)] == ["step_000003", "step_000005"]
    assert [r["step"] for r in read_metrics(cut.folder) if "loss" in r] == [1, 2, 3, 4, 5]
    run(cut)
    assert same_weights(whole, cut)
    assert [r["loss"] for r in read_metrics(whole.folder) if "loss" in r] == [
        r["loss"] for r in read_metrics(cut.folder) if "loss" in r
    ]


def test_dropout_is_the_same_after_a_resume(tmp_path: Path) -> None:
    config = toy.CONFIG
    sizes = {"sequence_len": config.sequence_len, "vocab_size": config.vocab_size, "n_embd": 32, "n_head": 2}
    model = registry.architecture("GPT2", n_layer=2, dropout=0.3, **sizes)
    whole, cut, other = (toy.token_stage(tmp_path, name) for name in ("whole", "cut", "other"))
    whole, cut = (replace(stage, recipe=replace(stage.recipe, model=model)) for stage in (whole, cut))
    run(whole)
    with pytest.raises(Killed):
        run(cut, kill_at(5))
    torch.rand(7)  # another process has drawn other numbers
    run(cut)
    assert same_weights(whole, cut)
    other = replace(other, recipe=replace(other.recipe, model=model | {"dropout": 0.0}))
    run(other)
    assert not same_weights(whole, other)


def slow_disk(monkeypatch: pytest.MonkeyPatch, step: int) -> threading.Event:
    """Let the weights of a step be written only when the event that this returns is set."""
    go, write = threading.Event(), paths.write_bytes
    monkeypatch.setattr("raychat.train.run.QUICK_S", 0.0)

    def write_bytes(path: str, data: bytes) -> None:
        if path.endswith(f"step_{step:06d}/model.safetensors"):
            assert go.wait(120)
        write(path, data)

    monkeypatch.setattr(paths, "write_bytes", write_bytes)
    return go


def soon(go: threading.Event) -> None:
    threading.Timer(0.3, go.set).start()


def test_training_goes_on_while_the_weights_as_they_were_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(device_rows=4, save_every=3, keep=0)
    whole, slow = (toy.token_stage(tmp_path, name, runtime) for name in ("whole", "slow"))
    run(whole)
    go, seen = slow_disk(monkeypatch, step=3), list[str | None]()

    def report(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            go.set()
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join()
        if row["step"] == 6:
            seen.append(checkpoint.latest(slow.folder))

    run(slow, report)
    assert seen == [f"{slow.folder}/step_000003"]
    assert [paths.name(path) for path in checkpoint.all_in(slow.folder)] == [f"step_{n:06d}" for n in (3, 6, 8)]
    for file in itertools.product((3, 6, 8), ("model", "optimizer_000")):
        name = "step_{:06d}/{}.safetensors".format(*file)
        assert paths.read_bytes(f"{slow.folder}/{name}") == paths.read_bytes(f"{whole.folder}/{name}")


@pytest.mark.parametrize(("slow", "stop", "steps"), [(3, 8, [3, 6, 8]), (8, 8, [3, 6, 8]), (5, 5, [3, 5])])
def test_next_checkpoint_a_stop_and_the_end_wait_for_a_slow_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: int, stop: int, steps: list[int]
) -> None:
    one = toy.token_stage(tmp_path, "one", Runtime(device_rows=4, save_every=3, keep=0))
    go, last = slow_disk(monkeypatch, slow), {3: 6, 5: 5, 8: 8}[slow]  # the step that has to wait
    with contextlib.suppress(Stopped):
        run_stage(one, lambda row: soon(go) if row["step"] == last else None, stop=at_step(stop))
    assert [paths.name(path) for path in checkpoint.all_in(one.folder)] == [f"step_{n:06d}" for n in steps]


def test_rewind_waits_for_a_slow_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = changed(tmp_path, "one", dict.fromkeys((4, 5, 6), math.nan))
    go = slow_disk(monkeypatch, step=3)
    assert run(one, lambda row: soon(go) if row["step"] == 6 else None)["rewinds"] == 1


def test_slow_checkpoint_that_fails_ends_the_stage_and_keeps_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, write = toy.token_stage(tmp_path, "one", Runtime(device_rows=4, save_every=3, keep=0)), checksums.write
    monkeypatch.setattr("raychat.train.run.QUICK_S", 0.0)

    def fail(folder: str, name: str, data: bytes) -> dict[str, checksums.Checksum]:
        if "step_000006" in folder:
            raise OSError("No space left")
        return write(folder, name, data)

    monkeypatch.setattr(checksums, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        run(one)
    assert {name for name in os.listdir(one.folder) if "step" in name} == {"step_000003"}


@pytest.mark.parametrize("killed_at", [5, 7])
def test_stage_that_skipped_a_step_ends_in_the_same_weights(tmp_path: Path, killed_at: int) -> None:
    whole, cut = (changed(tmp_path, name, {5: math.nan}) for name in ("whole", "cut"))
    summary = run(whole)
    assert summary["skipped"] == 1
    with pytest.raises(Killed):
        run(cut, kill_at(killed_at))
    assert paths.name(checkpoint.latest(cut.folder) or "") == "step_000003"  # step 6 was skipped
    assert run(cut)["skipped"] == 1
    assert same_weights(whole, cut)
    rows = [r for r in read_metrics(cut.folder) if "lr" in r]
    assert [r["step"] for r in rows if "loss" not in r] == [6]
    assert [r["skipped"] for r in rows if "skipped" in r] == [1]


def test_after_three_skipped_steps_the_last_checkpoint_takes_the_next_step(tmp_path: Path) -> None:
    bad = {4: math.nan, 5: math.inf, 6: math.nan}
    whole, killed, stopped = (changed(tmp_path, name, bad) for name in ("whole", "killed", "stopped"))
    rows: list[dict[str, Any]] = []
    summary = run(whole, rows.append)
    assert (summary["skipped"], summary["rewinds"]) == (3, 1)
    assert [(r["step"], r["rewound_to"]) for r in rows if "rewound_to" in r] == [(7, 3)]
    third = paths.join(whole.folder, "step_000003")
    model, _ = checkpoint.load_model(third, CPU)
    optimizer = build_optimizer(model, lr_scale=whole.recipe.lr_scale, weight_decay=whole.recipe.weight_decay)
    checkpoint.load_optimizer(third, optimizer)
    rows_of = TokenRows(str(tmp_path / "train"))
    steps = steps_of(rows_of, rows_per_step=6, device_rows=4, start=7, world=World(0, 1), device=CPU)
    train(model.train(), optimizer, steps, start=7, steps=8, schedule=whole.schedule(8), nll=model.nll)
    expected, got = model.state_dict(), weights(whole.folder)
    assert all(torch.equal(expected[name], got[name]) for name in expected)

    with pytest.raises(Killed):
        run(killed, kill_at(7))
    run(killed)
    stopped = replace(stopped, runtime=replace(toy.RUNTIME, keep=1))
    with pytest.raises(Stopped, match="step 4 "):  # one more checkpoint, which is not the one to go back to
        run_stage(stopped, lambda row: None, stop=at_step(4))
    run(stopped)
    assert same_weights(whole, killed)
    assert same_weights(whole, stopped)


def test_damaged_checkpoint_is_not_gone_back_to(tmp_path: Path) -> None:
    one = changed(tmp_path, "one", dict.fromkeys((4, 5, 6), math.nan))

    def report(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            damage(Path(one.folder, "step_000003", "model.safetensors"))

    with pytest.raises(ValueError, match=r"step_000003/model\.safetensors: got bytes of sha256"):
        run(one, report)


def test_stage_that_stays_nan_stops_and_keeps_its_checkpoints(tmp_path: Path) -> None:
    one = changed(tmp_path, "one", dict.fromkeys(range(2, 12), math.nan), Runtime(device_rows=8, save_every=1))
    one = replace(one, steps=12)
    with pytest.raises(FloatingPointError, match=r"step 11: the loss is nan"):  # 3 steps, and 3 after each rewind
        run(one)
    assert [paths.name(p) for p in checkpoint.all_in(one.folder)] == ["step_000001", "step_000002"]
    assert all(torch.isfinite(value).all() for value in weights(one.folder, step=2).values())
    whole = replace(one, source=toy.token_stage(tmp_path, "one").source)
    assert run(whole)["steps"] == 12


def test_spike_is_marked_also_after_a_resume(tmp_path: Path) -> None:
    one = replace(changed(tmp_path, "one", {12: 9.0}, Runtime(save_every=12)), steps=14)
    with pytest.raises(Killed):
        run(one, kill_at(13))
    run(one)
    assert [r["step"] for r in read_metrics(one.folder) if r.get("spike")] == [13]
