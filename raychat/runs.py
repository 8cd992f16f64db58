"""The runs in a storage: their stages, their saved steps, and the checkpoint to talk to."""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from raychat import checkpoint, paths

STAGES = ("base", "mid", "sft", "rl")  # in their order
CHAT_STAGES = ("rl", "sft", "mid")  # that end in a model one can talk to, the latest first
_ID = re.compile(rf"(?P<run>.+)-(?P<stage>{'|'.join(STAGES)})(@(?P<step>\d+))?")


class Found(NamedTuple):
    """A checkpoint of a run."""

    run: str
    stage: str
    path: str
    latest: bool = True  # the newest of its stage

    @property
    def name(self) -> str:
        return f"{self.run}-{self.stage}"

    @property
    def step(self) -> int:
        return int(paths.name(self.path).removeprefix("step_"))

    @property
    def id(self) -> str:
        """What it is called where one can choose: the newest of a stage by name, older ones with their step.

        >>> Found("tiny", "sft", "/runs/tiny/sft/step_000200", latest=False).id
        'tiny-sft@200'
        """
        return self.name if self.latest else f"{self.name}@{self.step}"


def every_checkpoint(storage: str, run: str | None = None) -> list[Found]:
    """Return all complete checkpoints of a run, or of all runs (None): stages in their order, the newest step first."""
    runs = paths.names(paths.join(storage, "runs"))
    return [found for r in runs if run in (None, r) for stage in STAGES for found in _saved(storage, r, stage)]


def checkpoint_named(storage: str, id: str) -> Found | None:
    """Return the checkpoint with an id such as `tiny-sft` (the newest now) or `tiny-sft@200`; None where there is none.

    The id may come from anybody: it reaches nothing outside of the runs.
    """
    parts = _ID.fullmatch(id)
    if parts is None or parts["run"] not in paths.names(paths.join(storage, "runs")):
        return None
    saved = _saved(storage, parts["run"], parts["stage"])
    return next((f for f in saved if parts["step"] in (None, str(f.step))), None)


def _saved(storage: str, run: str, stage: str) -> Iterator[Found]:
    """Yield the complete checkpoints of a stage, the newest first."""
    saved = checkpoint.all_in(paths.join(storage, "runs", run, stage))
    for path in reversed(saved):
        yield Found(run, stage, path, latest=path == saved[-1])


def find_checkpoint(storage: str, run: str | None = None, stage: str | None = None, step: int | None = None) -> Found:
    """Return the newest checkpoint to talk to, or the one of a step.

    Args:
        run: None = the run that wrote such a checkpoint last.
        stage: one of STAGES; None = the latest of CHAT_STAGES that the run has reached.
        step: None = the newest.

    Raises:
        ValueError: there is no such checkpoint; says what there is, and how to make one.
    """
    if stage is not None and stage not in STAGES:
        raise ValueError(f"stage is {stage!r}; expected one of {', '.join(STAGES)}")
    found = [f for r in paths.names(paths.join(storage, "runs")) if (f := _newest(storage, r, stage))]
    wanted = [f for f in found if run in (None, f.run)]
    if not wanted:
        which = f"of the stage {stage}" if stage else f"of the stages {', '.join(CHAT_STAGES)}"
        others = f"; runs that have one: {', '.join(f.run for f in found)}" if found else ""
        raise ValueError(
            f"no checkpoint {which} in {paths.join(storage, 'runs', run or '*')}{others}. Train one first "
            "(make speedrun-tiny), or point RAYCHAT_HOME or the storage path at where it was written"
        )
    newest = max(wanted, key=lambda f: written(f.path)) if len(wanted) > 1 else wanted[0]
    if step is None:
        return newest
    saved = {f.step: f for f in _saved(storage, newest.run, newest.stage)}
    if step not in saved:
        raise ValueError(f"{newest.name} has no checkpoint of step {step}; it has {', '.join(map(str, sorted(saved)))}")
    return saved[step]


def _newest(storage: str, run: str, stage: str | None) -> Found | None:
    stages = (stage,) if stage else CHAT_STAGES
    return next((found for s in stages for found in _saved(storage, run, s)), None)


def written(path: str) -> datetime:
    """Return when a checkpoint was completed."""
    fs, p = paths.file_system(paths.join(path, paths.LAST_FILE))
    when: datetime = fs.modified(p)
    return when
