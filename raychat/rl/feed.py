"""What the RL stage trains on: every step's rollouts, made with the current weights, or ahead with earlier ones."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from raychat import checkpoint, dist
from raychat.data.batches import Batch, Step, validation_batches
from raychat.data.shards import TokenRows
from raychat.engine.engine import Engine
from raychat.engine.sampling import SamplingParams
from raychat.evals import bpb
from raychat.evals.accuracy import mean
from raychat.evals.chat import Sampling, generate
from raychat.evals.evaluation import chosen
from raychat.evals.generate import Group, Question
from raychat.log import read_metrics
from raychat.model.base import Model
from raychat.rl.algorithms import REINFORCE, Algorithm
from raychat.rl.queue import Answers, InStep, OnRank0, RolloutQueue, Taken, used_places, usual_places
from raychat.rl.sampler import Pool, Sampler
from raychat.rl.samples import write_samples
from raychat.rl.step import (
    Padding,
    Weighed,
    divergences,
    figures,
    has_signal,
    logprobs_of,
    means,
    question_at,
    reward_trend,
    speed,
    spread,
    to_batches,
    weigh,
    weights_of,
)
from raychat.tasks import Task
from raychat.train.loop import Nll, is_due
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
    algorithm: Algorithm = REINFORCE
    ahead: int = 0  # steps whose questions are answered while the learner takes a step

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

    tokens_per_step: int = 0  # it varies: the rows of metrics count those that were generated

    def __init__(self, source: RolloutSource, learner: Learner) -> None:
        self._source, self._learner, self._model, self._device = source, learner, learner.model, learner.device
        self.nll: Nll = learner.model.nll  # not compiled: rollouts have many lengths
        self._token_bytes = torch.from_numpy(learner.tokenizer.token_bytes()).to(self._device)
        self._kept_parent: Model | None = None
        self._val_rewards: list[float] = []  # of the newest evaluation, as are the sums
        self._val_sums: torch.Tensor | None = None
        self._task = source.task()
        if not self._task.problems:
            raise ValueError(f"task {self._task.name} has no problems to ask")
        rows = learner.stage.runtime.device_rows or device_rows(
            self._model, self._device, dist.world().size, learner.dtype
        )
        self._device_tokens = rows * self._model.config.sequence_len
        multiple = _LENGTH_MULTIPLE[self._device.type]
        self._padding = Padding(learner.tokenizer.bos, self._device_tokens, multiple, self._device)

    def steps(self, start: int) -> Iterator[Step]:
        """Yield step `start` and all that follow; `next` waits for the rollouts of a step."""
        folder, num_steps = self._learner.stage.folder, self._learner.stage.steps
        with self._cores_shared(), closing(self._answers()) as answers:
            queue = self._queue(answers, start)
            last = time.monotonic()
            for number in range(start, num_steps):
                began = time.monotonic()
                self._model.eval()
                answers.publish(number, self._model.state_dict())
                taken = queue.take(number)
                now = time.monotonic()
                weighed = weigh(taken.groups, self._source.algorithm, self._source.params.max_new_tokens)
                batches, scores = self._batches(number, weighed)
                self._model.train()
                metrics = {**self._figures(number, taken), **scores, **speed(taken.groups, now - last, now - began)}
                last = now
                if dist.world().rank == 0:
                    write_samples(folder, number + 1, taken.groups, self._learner.tokenizer)
                yield Step(batches, metrics, teaches=bool(weighed))

    @contextmanager
    def _cores_shared(self) -> Iterator[None]:
        """Leave to actors that sample meanwhile their cores: a thread that waits for one holds all threads up."""
        pool, threads = self._source.pool, torch.get_num_threads()
        busy = -(-pool.cores // dist.world().size) if pool is not None and self._source.ahead else 0
        torch.set_num_threads(max(1, threads - busy))
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _answers(self) -> Answers:
        """Return who answers: in step with the learner, or ahead of it."""
        source = self._source
        if source.ahead == 0:
            return InStep(self._rollouts, source.questions_per_call)
        if source.pool is not None:
            return OnRank0(source.pool.stream())
        if (size := dist.world().size) > 1:
            raise ValueError(f"--ahead with {size} train workers needs rollout actors; set --rollout-workers")
        self._sampler  # noqa: B018  its engine packs the weights: before the stream's, which records what it packed
        return self._new_sampler().stream()

    def _queue(self, answers: Answers, start: int) -> RolloutQueue:
        source, stage = self._source, self._learner.stage
        used = used_places(read_metrics(stage.folder), start, source.questions_per_step)
        return RolloutQueue(
            answers,
            self._question_at,
            per_step=source.questions_per_step,
            ahead=source.ahead,
            num_steps=stage.steps,
            used=dist.gather(used)[0],  # rank 0 writes the rows
            useful=has_signal if source.algorithm.replaces else lambda group: True,
        )

    def _question_at(self, place: int) -> Question:
        seed = self._learner.stage.recipe.seed
        return question_at(self._task.problems, place, samples=self._source.samples, seed=seed)

    def _rollouts(self, calls: list[list[Question]]) -> list[list[Group]]:
        """Return the groups of all calls, on every worker: made by the pool that rank 0 drives, or by the workers."""
        rank, size = dist.world()
        mine: dict[int, list[Group]] = {}
        if self._source.pool is None:
            sampler = self._current_sampler()
            mine = {i: sampler.rollout(calls[i]) for i in range(rank, len(calls), size)}
        elif rank == 0:
            mine = dict(enumerate(self._source.pool.rollouts(calls, self._model.state_dict())))
        made = {i: groups for part in dist.gather(mine) for i, groups in part.items()}
        return [made[i] for i in range(len(calls))]

    def _batches(self, number: int, weighed: list[Weighed]) -> tuple[Iterator[Batch], Metrics]:
        """Return this worker's share of the step, and what scoring passes say where they are made. Collective.

        Stale tokens need the learner's log-probabilities, a KL term needs the parent's. A step after which the stage
        evaluates has both.
        """
        rank, size = dist.world()
        mine, algorithm, stage = weighed[rank::size], self._source.algorithm, self._learner.stage
        rollouts = [weighed.rollout for weighed in mine]
        stale, due = self._source.ahead > 0, is_due(number + 1, stage.runtime.eval_every, stage.steps)
        learner = logprobs_of(self._model.nll, rollouts, self._padding) if stale or due else None
        parent = logprobs_of(self._parent().nll, rollouts, self._padding) if algorithm.kl or due else None
        weights = weights_of(mine, algorithm, learner if stale else None, parent if algorithm.kl else None)
        scores = {} if learner is None else means(dist.gather(divergences(rollouts, number, learner, parent)))
        return to_batches(rollouts, weights, self._padding), scores

    def _figures(self, number: int, taken: Taken) -> dict[str, Any]:
        """Return the figures of a step's answers, and its questions where the number of the step does not tell them."""
        found: dict[str, Any] = dict(figures([*taken.groups, *taken.replaced], number))
        usual = taken.places == usual_places(number, self._source.questions_per_step)
        return found if usual else {**found, "questions": taken.places}

    def _parent(self) -> Model:
        """Return the parent's model; it stays in memory where every step needs it."""
        if (model := self._kept_parent) is None:
            assert self._learner.stage.parent is not None
            model = checkpoint.load_model(self._learner.stage.parent, self._device)[0].eval()
            self._kept_parent = model if self._source.algorithm.kl else None
        return model

    @cached_property
    def _sampler(self) -> Sampler:
        return self._new_sampler()

    def _new_sampler(self) -> Sampler:
        """Return a sampler that generates with the learner's model itself."""
        engine = Engine(self._model, self._learner.tokenizer, max_sequences=self._source.max_sequences)
        return Sampler(engine, self._task.reward, self._source.params)

    def _current_sampler(self) -> Sampler:
        self._sampler.load_weights(self._model.state_dict())
        return self._sampler

    @cached_property
    def _val_task(self) -> Task:
        assert self._source.val_task is not None
        return self._source.val_task()

    def evaluate(self) -> Metrics:
        """Return the mean reward of the likeliest answers to held-out problems, and the bits per byte. Collective."""
        metrics: Metrics = {}
        if self._source.val_task and self._source.num_eval:
            self._val_rewards = self._rewards_of_val_task()
            metrics["val_reward"] = mean(self._val_rewards)
        if self._source.val_rows is not None:
            self._val_sums = self._sums_of(TokenRows(self._source.val_rows))
            metrics["val_bpb"] = bpb.figures(self._val_sums)["val_bpb"]
        return metrics

    def _rewards_of_val_task(self) -> list[float]:
        rank, size = dist.world()
        indices = chosen(len(self._val_task.problems), self._source.num_eval)
        greedy = Sampling(max_new_tokens=self._source.params.max_new_tokens)
        mine = generate(self._current_sampler().engine, self._val_task, indices[rank::size], greedy)
        parts = dist.gather([graded.reward for graded in mine])
        return [parts[i % size][i // size] for i in range(len(indices))]

    def _sums_of(self, rows: TokenRows) -> torch.Tensor:
        num_rows = max(1, self._device_tokens // self._model.config.sequence_len)
        batches = validation_batches(
            rows, rows.num_rows(), device_rows=num_rows, world=dist.world(), device=self._device
        )
        return bpb.sums_of_all(self._model.nll, batches, self._token_bytes)

    def facts(self) -> dict[str, Any]:
        """Return how the reward developed, how sure the figures are, and some answers of the final model."""
        source, stage = self._source, self._learner.stage
        rows = read_metrics(stage.folder)
        usual = source.questions_per_step
        num_tokens = sum(r.get("completion_tokens", 0) * len(r.get("questions", range(usual))) for r in rows)
        places = usual_places(stage.steps, usual)[:_NUM_SHOWN]
        shown = [question._replace(seeds=question.seeds[:1]) for question in map(self._question_at, places)]
        self._model.eval()
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
        trend = reward_trend(rows)
        sure = spread(trend | ({"val_reward": self._val_rewards} if self._val_rewards else {}))
        if self._val_sums is not None:
            sure = {name: found | sure[name] for name, found in bpb.spread(self._val_sums).items()}
        return {
            **{name: mean(rewards) for name, rewards in trend.items()},
            **sure,
            "tokens": round(num_tokens * source.samples),
            "samples": samples,
            "unigram_bpb": source.unigram_bpb,
        }
