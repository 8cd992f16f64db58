"""The runs in a storage: their stages, and the checkpoint to talk to."""

from datetime import datetime
from typing import NamedTuple

from fsspec.core import url_to_fs

from raychat import checkpoint, paths

STAGES = ("base", "mid", "sft", "rl")  # in their order
CHAT_STAGES = ("rl", "sft", "mid")  # that end in a model one can talk to, the latest first


class Found(NamedTuple):
    """A checkpoint of a chat model."""

    run: str
    stage: str
    path: str

    @property
    def name(self) -> str:
        return f"{self.run}-{self.stage}"


def find_checkpoint(storage: str, run: str | None = None, stage: str | None = None) -> Found:
    """Return the newest checkpoint to talk to.

    Args:
        run: None = the run that wrote a chat checkpoint last.
        stage: one of CHAT_STAGES; None = the latest that the run has reached.

    Raises:
        ValueError: there is no such checkpoint; says what there is, and how to make one.
    """
    if stage is not None and stage not in CHAT_STAGES:
        raise ValueError(f"stage is {stage!r}; expected one of {', '.join(CHAT_STAGES)}")
    found = [f for r in paths.names(paths.join(storage, "runs")) if (f := _newest(storage, r, stage))]
    wanted = [f for f in found if run in (None, f.run)]
    if not wanted:
        which = f"of the stage {stage}" if stage else f"of the stages {', '.join(CHAT_STAGES)}"
        others = f"; runs that have one: {', '.join(f.run for f in found)}" if found else ""
        raise ValueError(
            f"no checkpoint {which} in {paths.join(storage, 'runs', run or '*')}{others}. Train one first "
            "(make speedrun-tiny), or point RAYCHAT_HOME or the storage path at where it was written"
        )
    return max(wanted, key=lambda f: written(f.path)) if len(wanted) > 1 else wanted[0]


def _newest(storage: str, run: str, stage: str | None) -> Found | None:
    for s in (stage,) if stage else CHAT_STAGES:
        if path := checkpoint.latest(paths.join(storage, "runs", run, s)):
            return Found(run, s, path)
    return None


def written(path: str) -> datetime:
    """Return when a checkpoint was completed."""
    fs, p = url_to_fs(paths.join(path, paths.LAST_FILE))
    when: datetime = fs.modified(p)
    return when
