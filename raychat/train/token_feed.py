"""What base, mid and SFT train on: rows of token shards. They differ only in the values given here and in `Stage`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raychat import dist, paths
from raychat.data.batches import Step, steps_of, validation_batches
from raychat.data.shards import TokenRows, manifest
from raychat.data.text_rows import training_rows
from raychat.evals.bpb import figures, spread, sums_of_all, unigram_bpb
from raychat.evals.bundle import CoreTask
from raychat.evals.core import core_evaluation
from raychat.evals.evaluation import LoadedModel
from raychat.train.compiling import one_graph
from raychat.train.memory import device_rows
from raychat.train.stage import Learner, Metrics

UNIGRAM_ROWS = 4096  # training rows that the unigram model is counted on
CORE_ITEMS_PER_CALL = 16  # few, so that all workers have some


@dataclass(frozen=True)
class TokenSource:
    """Folders of token shards, possibly still growing."""

    train: str
    val: str
    max_val_rows: int | None = None  # rows of an evaluation; None = all
    core: tuple[CoreTask, ...] = ()  # tasks that are scored with it
    core_items: int | None = None  # of each of them; None = all

    def __call__(self, learner: Learner) -> "TokenFeed":
        return TokenFeed(self, learner)


class TokenFeed:
    """One worker's share of the rows; a `Feed`."""

    def __init__(self, source: TokenSource, learner: Learner) -> None:
        recipe = learner.stage.recipe
        self._learner, self._source, self._recipe = learner, source, recipe
        self.tokens_per_step = recipe.rows_per_step * recipe.sequence_len
        stage, tokens = learner.stage, learner.stage.steps * self.tokens_per_step // dist.world().size
        runtime = stage.runtime
        self.nll = one_graph(learner.model, tokens, runtime.compile, runtime.activation_budget)
        self._rows, self._val_rows = training_rows(source.train, recipe.seed), TokenRows(source.val)
        self._num_val = min(self._val_rows.num_rows(), source.max_val_rows or self._val_rows.num_rows())
        rows = runtime.device_rows or device_rows(
            learner.model, learner.device, dist.world().size, learner.dtype, runtime.activation_budget
        )
        self._split: dict[str, Any] = {"device_rows": rows, "world": dist.world(), "device": learner.device}
        self._token_bytes = torch.from_numpy(learner.tokenizer.token_bytes()).to(learner.device)
        self._val_sums: torch.Tensor | None = None  # of the newest evaluation; the last step has one

    def steps(self, start: int) -> Iterator[Step]:
        stop, rows_per_step = self._learner.stage.steps, self._recipe.rows_per_step
        return steps_of(self._rows, rows_per_step=rows_per_step, start=start, stop=stop, **self._split)

    def evaluate(self) -> Metrics:
        """Return the validation rows' bits per byte and nats per token, and CORE where it is asked for. Collective."""
        batches = validation_batches(self._val_rows, self._num_val, **self._split)
        self._val_sums = sums_of_all(self.nll, batches, self._token_bytes)
        return figures(self._val_sums) | (self._core() if self._source.core else {})

    def _core(self) -> Metrics:
        """Return CORE, of whose calls every worker makes its share."""
        evaluation = core_evaluation(self._source.core, self._source.core_items, items_per_call=CORE_ITEMS_PER_CALL)
        loaded = LoadedModel(self._learner.model, self._learner.tokenizer, pack=False)
        (rank, size), calls = dist.world(), evaluation.calls
        results = dist.together(lambda: [call(loaded) for call in calls[rank::size]])
        return {"val_core": evaluation.finish([results[i % size][i // size] for i in range(len(calls))])["core"]}

    def facts(self) -> dict[str, Any]:
        """Return the data's manifests, how sure `val_bpb` is, and that of a unigram model, which a model must beat."""
        steps = self._learner.stage.steps
        seen = min(self._rows.available(), steps * self._recipe.rows_per_step, UNIGRAM_ROWS)
        train, val = self._rows.rows(np.arange(seen)), self._val_rows.rows(np.arange(self._num_val))
        bpb = unigram_bpb(train, val, self._learner.tokenizer.token_bytes())
        data = {"train": manifest(self._source.train), "val": manifest(self._source.val)}
        val_rows = paths.relative(self._source.val, self._learner.stage.storage)
        assert self._val_sums is not None
        return {"unigram_bpb": bpb, "val_rows": val_rows, "data": data, **spread(self._val_sums)}
