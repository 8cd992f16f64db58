"""The stage: every step's rollouts are made with the current weights when the loop asks for the step's batches."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from raychat import checkpoint, dist
from raychat.data.batches import Batch, validation_batches
from raychat.data.shards import TokenRows
from raychat.device import device
from raychat.engine.sampling import SamplingParams
from raychat.evals.bpb import bits_per_byte
from raychat.evals.chat import Sampling, generate
from raychat.evals.core import chosen
from raychat.log import Report, read_metrics
from raychat.model.gpt import GPT
from raychat.optim import MuonAdamW
from raychat.optim.schedule import Schedule
from raychat.rl.sampler import Group, Pool, Question, Sampler
from raychat.rl.step import figures, questions_of, reward_trend, to_batches, weigh
from raychat.tasks import Task
from raychat.tokenizer import Tokenizer
from raychat.train import stage
from raychat.train.stage import Metrics, Stage
from raychat.train.token_stage import default_device_rows

_LENGTH_MULTIPLE = {"cpu": 8, "cuda": 128}  # batches are padded to it: few shapes on a GPU, little padding on a CPU
_NUM_SHOWN = 4  # answers kept in the summary


@dataclass(frozen=True)
class RLStage:
    """Everything that a worker is told; picklable, paths absolute or URLs."""

    name: str  # "<run>/rl"
    folder: str  # of its checkpoints and metrics
    parent: str  # checkpoint that it starts from
    task: Callable[[], Task]  # whose problems are asked
    steps: int
    questions_per_step: int
    samples: int  # answers per question
    params: SamplingParams  # how they are sampled; its seed is not used
    schedule: Callable[[int], Schedule]  # from the number of steps
    lr_scale: float
    pool: Pool | None = None  # makes the rollouts; None = every worker makes its share
    questions_per_call: int = 1  # answered at once: samples * this many sequences in one batch
    val_task: Callable[[], Task] | None = None  # held-out problems
    num_eval: int = 0  # of them
    val_rows: str | None = None  # folder of the parent's validation rows: does the model still know what it knew?
    unigram_bpb: float | None = None  # of them
    seed: int = 0
    device_rows: int | None = None  # rows of full context that a micro-batch may be as large as; None = by the device
    eval_every: int = 0
    save_every: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def max_sequences(self) -> int:
        """Sequences that a sampler writes at once."""
        return self.samples * min(self.questions_per_call, self.questions_per_step)

    @property
    def calls_per_step(self) -> int:
        return -(-self.questions_per_step // self.questions_per_call)


def train_on_rollouts(work: RLStage, report: Report) -> dict[str, Any]:
    """Run the stage on this worker, one of any number; return its summary."""
    where = device()
    torch.manual_seed(work.seed)
    model, _ = checkpoint.load_model(work.parent, where)
    _hold_scalars(model)
    optimizer = MuonAdamW(model.named_parameters(), dim=model.config.n_embd, lr_scale=work.lr_scale, weight_decay=0.0)
    tokenizer = checkpoint.load_tokenizer(work.parent)
    learner = _Learner(work, model, tokenizer, where)
    return stage.run(
        Stage(
            name=work.name,
            folder=work.folder,
            tokenizer=tokenizer,
            steps=work.steps,
            tokens_per_step=0,  # not known before: the summary's `tokens` are those that were generated
            schedule=learner.schedule(),
            settings=work.settings,
            parent=work.parent,
            eval_every=work.eval_every,
            save_every=work.save_every,
        ),
        model,
        optimizer,
        learner.batches,
        report,
        evaluate=learner.evaluate if work.num_eval or work.val_rows else None,
        row=lambda: learner.latest,
        facts=learner.facts,
    )


def _hold_scalars(model: GPT) -> None:
    """Let only matrices learn. The few scalars and vectors each move the whole policy at once, at rates made for
    pretraining: in one step they change it more than all matrices together do.
    """
    for p in model.parameters():
        p.requires_grad_(p.dim() == 2 and min(p.shape) > 1)


class _Learner:
    """One worker's side of the stage: has the rollouts made, takes its share of them, knows their figures."""

    def __init__(self, work: RLStage, model: GPT, tokenizer: Tokenizer, where: torch.device) -> None:
        self._work, self._model, self._where = work, model, where
        self._pad = tokenizer.bos
        self._token_bytes = torch.from_numpy(tokenizer.token_bytes()).to(where)
        self._task = work.task()
        if not self._task.problems:
            raise ValueError(f"task {self._task.name} has no problems to ask")
        rows = work.device_rows or default_device_rows(model.config, where)
        self._device_tokens = rows * model.config.sequence_len
        self.latest: Metrics = {}  # figures of the step last asked for

    def batches(self, start: int) -> Iterator[Iterator[Batch]]:
        """Yield, step by step, this worker's micro-batches; its rollouts are made when a step is asked for."""
        rank, size = dist.world()
        for step in range(start, self._work.steps):
            began = time.monotonic()
            groups = self._rollouts(step)
            self.latest = {**figures(groups), "rollout_s": round(time.monotonic() - began, 3)}
            yield to_batches(
                weigh(groups)[rank::size],
                pad=self._pad,
                device_tokens=self._device_tokens,
                multiple=_LENGTH_MULTIPLE[self._where.type],
                where=self._where,
            )

    def schedule(self) -> Schedule:
        """Return the stage's schedule with rate 0 for a step whose rewards teach nothing.

        There the gradient is zero, but Muon would go on at full size in the direction of its momentum.
        """
        schedule = self._work.schedule(self._work.steps)
        return schedule._replace(lr=lambda step: schedule.lr(step) if self.latest["signal"] else 0.0)

    def _questions(self, step: int) -> list[Question]:
        work = self._work
        sizes = {"questions_per_step": work.questions_per_step, "samples": work.samples}
        return questions_of(self._task.problems, step, **sizes, seed=work.seed)

    def _rollouts(self, step: int) -> list[Group]:
        """Return all groups of a step, on every worker: made by the pool that rank 0 drives, or by the workers."""
        rank, size = dist.world()
        questions, n = self._questions(step), self._work.questions_per_call
        calls = [questions[i : i + n] for i in range(0, len(questions), n)]
        mine: dict[int, list[Group]] = {}
        if self._work.pool is None:
            sampler = self._current_sampler()
            mine = {i: sampler.rollout(calls[i]) for i in range(rank, len(calls), size)}
        elif rank == 0:
            mine = dict(enumerate(self._work.pool.rollouts(calls, self._model.state_dict())))
        made = {i: groups for part in dist.gather(mine) for i, groups in part.items()}
        return [group for i in range(len(calls)) for group in made[i]]

    @cached_property
    def _sampler(self) -> Sampler:
        return Sampler.load(self._work.parent, self._task.reward, self._work.params, self._work.max_sequences)

    def _current_sampler(self) -> Sampler:
        self._sampler.load_weights(self._model.state_dict())
        return self._sampler

    @cached_property
    def _val_task(self) -> Task:
        assert self._work.val_task is not None
        return self._work.val_task()

    def evaluate(self) -> Metrics:
        """Return the mean reward of the likeliest answers to held-out problems, and the bits per byte. Collective."""
        metrics = self._val_reward() if self._work.val_task and self._work.num_eval else {}
        if self._work.val_rows is not None:
            metrics["val_bpb"] = self._val_bpb(TokenRows(self._work.val_rows))
        return metrics

    def _val_reward(self) -> Metrics:
        rank, size = dist.world()
        task, engine = self._val_task, self._current_sampler().engine
        indices = chosen(len(task.problems), self._work.num_eval)
        greedy = Sampling(max_new_tokens=self._work.params.max_new_tokens)
        answers = generate(engine, task, indices[rank::size], greedy)
        parts = dist.gather([answer.reward for answer in answers.values()])
        return {"val_reward": sum(sum(part) for part in parts) / len(indices)}

    def _val_bpb(self, rows: TokenRows) -> float:
        device_rows = max(1, self._device_tokens // self._model.config.sequence_len)
        batches = validation_batches(
            rows, rows.num_rows(), device_rows=device_rows, world=dist.world(), device=self._where
        )
        return bits_per_byte(self._model, batches, self._token_bytes)

    def facts(self) -> dict[str, Any]:
        """Return how the reward developed, the tokens generated, and some answers of the final model."""
        work = self._work
        rows = read_metrics(work.folder)
        num_tokens = sum(row.get("completion_tokens", 0) for row in rows) * work.questions_per_step * work.samples
        shown = [question._replace(seeds=question.seeds[:1]) for question in self._questions(work.steps)[:_NUM_SHOWN]]
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
            "unigram_bpb": work.unigram_bpb,
        }
