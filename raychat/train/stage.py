"""What a stage is: a value that a job writes, and what each of its workers trains on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from raychat import dist, paths
from raychat.data.batches import Step
from raychat.model.base import Model
from raychat.optim.schedule import Schedule
from raychat.recipe import Recipe, Runtime
from raychat.tokenizer import Tokenizer
from raychat.train.loop import Nll

Metrics = dict[str, float]


class Feed(Protocol):
    """What one worker trains and evaluates on."""

    nll: Nll  # the learner's model's, compiled where all batches have one shape
    tokens_per_step: int  # for tok/s and MFU; 0 = it varies, so neither is reported

    def steps(self, start: int) -> Iterator[Step]:
        """Yield step `start` and all that follow."""
        ...

    def evaluate(self) -> Metrics:
        """Return the figures of the model as it is now. Collective; empty where there is nothing to evaluate."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what else the summary should hold, at the end of the stage (rank 0)."""
        ...


@dataclass(frozen=True)
class Stage:
    """One training stage: a job writes it, every worker runs it, its checkpoints record its recipe and runtime.

    Picklable; paths are absolute or URLs.
    """

    name: str  # "<run>/<stage>"
    storage: str  # root of everything that is written
    recipe: Recipe
    schedule: Callable[[int], Schedule]  # from the number of steps
    steps: int = 0  # 0 = not known before the data is there
    source: Callable[["Learner"], Feed] | None = None  # opened by every worker; None = likewise
    runtime: Runtime = field(default_factory=Runtime)
    fresh: bool = False  # a child with an optimizer of its own, without its parent's momenta
    matrices_only: bool = False  # vectors and scalars stay fixed (RL)

    @property
    def folder(self) -> str:
        """Where its checkpoints and metrics go."""
        return paths.join(self.storage, "runs", self.name)

    @property
    def tokenizer(self) -> str:
        """The folder of its tokenizer: its parent's, or the run's."""
        return paths.join(self.parent or paths.parent(self.folder), "tokenizer")

    @property
    def trace(self) -> str | None:
        """Where this worker's trace goes, if it is to write one."""
        wanted = self.runtime.profile and dist.world().rank == 0
        return paths.join(self.folder, "trace.json.gz") if wanted else None

    @property
    def parent(self) -> str | None:
        """The checkpoint that the stage starts from, absolute or a URL; None = freshly drawn weights."""
        return None if self.recipe.parent is None else paths.under(self.storage, self.recipe.parent)


class Learner(NamedTuple):
    """One worker's model and what it needs to be trained."""

    stage: Stage
    model: Model
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype  # that the model computes in
