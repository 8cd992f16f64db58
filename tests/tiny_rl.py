"""A small real model to reinforce, and a task that it can learn in seconds: to answer in ASCII."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch

from raychat import checkpoint
from raychat.checkpoint import Meta
from raychat.engine.sampling import SamplingParams
from raychat.evals.generate import Group
from raychat.model.gpt import GPT, GPTConfig
from raychat.model.registry import architecture_of
from raychat.optim.schedule import linear_to_zero
from raychat.recipe import Recipe
from raychat.rl.feed import RolloutSource
from raychat.tasks import Problem, Task
from raychat.train.finetune import child_recipe
from raychat.train.stage import Stage

# Of the order and the sampling. A question's advantages sum to 0: with some seeds single gradients cancel but for their
# rounding, which AdamW then divides by its own size. With this one all weights agree to 1e-5 for any number of workers.
SEED = 2
PARAMS = SamplingParams(temperature=1.0, max_new_tokens=6)


def model() -> GPT:
    """A model in which every weight has a part in the logits, and a gradient that is more than rounding."""
    # of two layers, backout would only scale the last one's output, which the final norm undoes
    config = GPTConfig(sequence_len=32, vocab_size=265, n_layer=3, n_head=2, n_kv_head=2, n_embd=32)
    built = GPT(config)
    built.init_weights()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in built.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return built


def parent(storage: Path, run: str = "tiny") -> str:
    """Save the model as the checkpoint that the stage starts from; return its path."""
    built = model()
    meta = Meta(0, Recipe(model=architecture_of(built), batch_tokens=96, lr_scale=1.0))
    return checkpoint.save_checkpoint(str(storage / "runs" / run / "sft"), built, None, tiny.byte_tokenizer(), meta)


def ascii_reward(problem: Problem, text: str) -> float:
    """Return the share of an answer's characters that are ASCII; bytes above 127 decode to other characters."""
    return sum(ord(c) < 128 for c in text) / max(len(text), 1)


def interrupting(after: int) -> Callable[[Problem, str], float]:
    """Return `ascii_reward`, but interrupted at every call after so many."""
    calls = 0

    def reward(problem: Problem, text: str) -> float:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        return ascii_reward(problem, text)

    return reward


def ascii_task(num_problems: int = 6, reward: Callable[[Problem, str], float] = ascii_reward) -> Task:
    problems = [
        Problem([{"role": "user", "content": "abcdef"[: i + 1]}, {"role": "assistant", "content": "x"}])
        for i in range(num_problems)
    ]
    return Task("ascii", problems, 0.0, reward)


def assert_same(got: list[list[Group]], expected: list[list[Group]]) -> None:
    """Compare calls: ids and rewards exactly; log-probabilities are fp32 sums, whose order other batches may change."""
    assert [[len(group) for group in call] for call in got] == [[len(group) for group in call] for call in expected]
    pairs = zip(*([r for call in calls for group in call for r in group] for calls in (got, expected)), strict=True)
    for ours, theirs in pairs:
        assert ours._replace(logprobs=[]) == theirs._replace(logprobs=[])
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def once(marker: Path) -> bool:
    """Tell whether nobody has come here before."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def stage_of(root: Path, name: str = "rl", *, steps: int = 4, peak: float = 0.5, **changes: object) -> Stage:
    """Describe a stage of a few steps from the model that `parent(root)` saved; `changes` are of its source."""
    source = RolloutSource(task=ascii_task, params=PARAMS, questions_per_step=3, samples=4)
    return Stage(
        name=f"tiny/{name}",
        storage=str(root),
        recipe=child_recipe(str(root / "runs/tiny/sft/step_000000"), str(root), lr=peak, seed=SEED),
        schedule=partial(linear_to_zero, peak=peak),
        steps=steps,
        source=replace(source, **changes),  # type: ignore[arg-type]
        fresh=True,
        matrices_only=True,
    )
