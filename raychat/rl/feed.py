"""What the RL stage trains on: every step's rollouts, made with the current weights when the loop asks for the step."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from raychat import dist
from raychat.data.batches import Step, validation_batches
from raychat.data.shards import TokenRows
from raychat.engine.sampling import SamplingParams
from raychat.evals.bpb import bits_per_byte
from raychat.evals.chat import Sampling, generate
from raychat.evals.evaluation import chosen, chunks
from raychat.evals.generate import Group, Question
from raychat.log import read_metrics
from raychat.rl.sampler import Pool, Sampler
from raychat.rl.step import figures, questions_of, reward_trend, to_batches, weigh
from raychat.tasks import Task
from raychat.train.loop import Nll
from raychat.train.memory import device_rows
from raychat.train.stage import Learner, Metrics

_LENGTH_MULTIPLE = {"cpu": 8, "cuda": 128}  # batches are padded to it: few shapes on a GPU, little padding on a CPU
_NUM_SHOWN = 4  # answers kept in the summary


@dataclass(frozen=True)
class RolloutSource:
    """The questions that a stage asks, and who answers them. Picklable."""

    task: Callable[[], Task]  # whose problems are asked
    params: SamplingParams  # how answers are sampled; its seed is not used
    questions_per_step: int
    samples: int  # answers per question
    questions_per_call: int = 1  # answered at once: samples * this many sequences in one batch
    pool: Pool | None = None  # makes the rollouts; None = every worker makes its share
    val_task: Callable[[], Task] | None = None  # held-out problems
    num_eval: int = 0  # of them
    val_rows: str | None = None  # folder of the parent's validation rows: does the model still know what it knew?
    unigram_bpb: float | None = None  # of them

    @property
    def max_sequences(self) -> int:
        """Sequences that a sampler generates at once."""
        return self.samples * min(self.questions_per_call, self.questions_per_step)

    @property
    def calls_per_step(self) -> int:
        return -(-self.questions_per_step // self.questions_per_call)

    def __call__(self, learner: Learner) -> "RolloutFeed":
        return RolloutFeed(self, learner)


class RolloutFeed:
    """One worker's side of the stage: has the rollouts made and takes its share of them; a `Feed`."""

    tokens_per_step: int = 0  # it varies: the summary's `tokens` are those that were generated

    def __init__(self, source: RolloutSource, learner: Learner) -> None:
        self._source, self._learner, self._model, self._device = source, learner, learner.model, learner.device
        self.nll: Nll = learner.model.nll  # not compiled: rollouts have many lengths
        self._token_bytes = torch.from_numpy(learner.tokenizer.token_bytes()).to(self._device)
        self._task = source.task()
        if not self._task.problems:
            raise ValueError(f"task {self._task.name} has no problems to ask")
        rows = learner.stage.runtime.device_rows or device_rows(self._model, self._device, dist.world().size)
        self._device_tokens = rows * self._model.config.sequence_len

    def steps(self, start: int) -> Iterator[Step]:
        """Yield step `start` and all that follow; `next` makes the rollouts of a step with the current weights."""
        rank, size = dist.world()
        for number in range(start, self._learner.stage.steps):
            began = time.monotonic()
            groups = self._rollouts(number)
            metrics = {**figures(groups), "rollout_s": round(time.monotonic() - began, 3)}
            batches = to_batches(
                weigh(groups)[rank::size],
                pad=self._learner.tokenizer.bos,
                device_tokens=self._device_tokens,
                multiple=_LENGTH_MULTIPLE[self._device.type],
                device=self._device,
            )
            yield Step(batches, metrics, teaches=metrics["signal"] > 0)

    def _questions(self, number: int) -> list[Question]:
        sizes = {"questions_per_step": self._source.questions_per_step, "samples": self._source.samples}
        return questions_of(self._task.problems, number, **sizes, seed=self._learner.stage.recipe.seed)

    def _rollouts(self, number: int) -> list[Group]:
        """Return all groups of a step, on every worker: made by the pool that rank 0 drives, or by the workers."""
        rank, size = dist.world()
        calls = chunks(self._questions(number), self._source.questions_per_call)
        mine: dict[int, list[Group]] = {}
        if self._source.pool is None:
            sampler = self._current_sampler()
            mine = {i: sampler.rollout(calls[i]) for i in range(rank, len(calls), size)}
        elif rank == 0:
            mine = dict(enumerate(self._source.pool.rollouts(calls, self._model.state_dict())))
        made = {i: groups for part in dist.gather(mine) for i, groups in part.items()}
        return [group for i in range(len(calls)) for group in made[i]]

    @cached_property
    def _sampler(self) -> Sampler:
        parent = self._learner.stage.parent
        assert parent is not None
        return Sampler.load(parent, self._task.reward, self._source.params, self._source.max_sequences)

    def _current_sampler(self) -> Sampler:
        self._sampler.load_weights(self._model.state_dict())
        return self._sampler

    @cached_property
    def _val_task(self) -> Task:
        assert self._source.val_task is not None
        return self._source.val_task()

    def evaluate(self) -> Metrics:
        """Return the mean reward of the likeliest answers to held-out problems, and the bits per byte. Collective."""
        metrics = self._val_reward() if self._source.val_task and self._source.num_eval else {}
        if self._source.val_rows is not None:
            metrics["val_bpb"] = self._val_bpb(TokenRows(self._source.val_rows))
        return metrics

    def _val_reward(self) -> Metrics:
        rank, size = dist.world()
        indices = chosen(len(self._val_task.problems), self._source.num_eval)
        greedy = Sampling(max_new_tokens=self._source.params.max_new_tokens)
        mine = generate(self._current_sampler().engine, self._val_task, indices[rank::size], greedy)
        parts = dist.gather([graded.reward for graded in mine])
        return {"val_reward": sum(sum(part) for part in parts) / len(indices)}

    def _val_bpb(self, rows: TokenRows) -> float:
        num_rows = max(1, self._device_tokens // self._model.config.sequence_len)
        batches = validation_batches(
            rows, rows.num_rows(), device_rows=num_rows, world=dist.world(), device=self._device
        )
        return bits_per_byte(self._model.nll, batches, self._token_bytes)

    def facts(self) -> dict[str, Any]:
        """Return how the reward developed, the tokens generated, and some answers of the final model."""
        source, stage = self._source, self._learner.stage
        rows = read_metrics(stage.folder)
        num_tokens = sum(row.get("completion_tokens", 0) for row in rows) * source.questions_per_step * source.samples
        shown = [question._replace(seeds=question.seeds[:1]) for question in self._questions(stage.steps)[:_NUM_SHOWN]]
        sampler = self._current_sampler()
        samples = [
            {
                "question": question.problem.messages[-2]["content"],
                "answer": sampler.engine.tokenizer.decode(group[0].completion),
                "reward": group[0].reward,
            }
            for question in shown
            for group in sampler.rollout([question])
        ]
        return {
            **reward_trend(rows),
            "tokens": round(num_tokens),
            "samples": samples,
            "unigram_bpb": source.unigram_bpb,
        }
