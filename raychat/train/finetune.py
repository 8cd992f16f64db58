"""What midtraining and SFT are made of: a parent's recipe, and conversations from tasks."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from raychat import checkpoint, paths, tasks
from raychat.data import corpus
from raychat.data.pack import Packing, conversations
from raychat.recipe import Recipe
from raychat.tasks import Problem
from raychat.tokenizer import Tokenizer
from raychat.train.stage import Stage

_VAL_FRAC = 0.02  # of the conversations of each task are held out, at least _MIN_VAL in all
_MIN_VAL = 50


def parent_of(job: Any, stages: Sequence[str]) -> str:
    """Return what a job starts from: --parent, or else the newest checkpoint of the first of these that its run has."""
    return paths.absolute(job.parent or checkpoint.latest_of(job.cluster.run_folder(job.run), stages))


def recipe_of(job: Any, stages: Sequence[str], planned: Recipe | None = None) -> Recipe:
    """Return the recipe of a job that starts from `parent_of` these stages.

    Args:
        job: the job's settings.
        planned: the recipe of a parent that has no checkpoint yet, in place of a checkpoint.
    """
    if planned is not None:
        return inherited(planned, job)
    return child_recipe(parent_of(job, stages), job.cluster.storage(), job)


def child_recipe(parent: str, storage: str, job: object = None, **changes: Any) -> Recipe:
    """Return the recipe of a stage that starts from the checkpoint `parent`: the parent's, with these changes.

    A change of None leaves the parent's value. Weight decay is 0: the base stage's cosine ended there.

    Args:
        job: settings of the job; those that are fields of a recipe are changes, too.
    """
    recipe = inherited(checkpoint.read_meta(parent).recipe, job, **changes)
    return replace(recipe, parent=paths.relative(parent, storage))


def inherited(parent: Recipe, job: object = None, **changes: Any) -> Recipe:
    """Return the recipe of a stage as `child_recipe` does, from a parent that may have no checkpoint yet."""
    own: dict[str, Any] = dict.fromkeys(("steps", "num_shards", "inputs", "sampling", "schedule", "parent"))
    given = {field.name: getattr(job, field.name, None) for field in fields(Recipe) if field.name != "parent"} | changes
    own |= {"weight_decay": 0.0} | {key: value for key, value in given.items() if value is not None}
    return replace(parent, **own)


def described(stage: Stage) -> str:
    """Say what the stage's conversations are made from. Reads and writes nothing.

    Raises:
        ValueError: A task is unknown, or the folder of their data does not exist.
    """
    recipe = stage.recipe
    assert recipe.task_data is not None
    tasks.in_turns(recipe.tasks)
    if recipe.task_data != "tinyworld":  # which is written when it is first named
        corpus.task_root(recipe.task_data, stage.storage)
    return f"{', '.join(recipe.tasks)} of {recipe.task_data}"


def packings(stage: Stage, *, masked: bool) -> tuple[Packing, Packing]:
    """Return how the conversations of the stage's tasks are packed, for training and for validation.

    masked: whether only the assistant's tokens carry loss, in padded rows (SFT); else every token of full rows (mid).
    """
    recipe = stage.recipe
    assert recipe.task_data is not None
    tokenizer, root = Tokenizer.load(stage.tokenizer), corpus.task_root(recipe.task_data, stage.storage)
    train, val = (
        conversations(problems, tokenizer, recipe.sequence_len, stage.storage, masked=masked)
        for problems in load_mixture(recipe.tasks, root, recipe.seed)
    )
    return train, val


def load_mixture(names: Sequence[str], root: str, seed: int) -> tuple[Sequence[Problem], Sequence[Problem]]:
    """Load training tasks and mix them; `gsm8k*4` takes one four times. Return what to train and what to validate on.

    Tasks behind `then` are trained on after those before it.

    Raises:
        ValueError: A task is unknown or has no data, the number behind a `*` is not a whole one of 1 or more, a `then`
            is first or last, or there are too few problems in all.
    """
    turns = tasks.in_turns(names)
    loaded = {name: tasks.load(name, root, "train") for turn in turns for name, _ in turn}
    total = sum(len(task.problems) for task in loaded.values())
    if total < 2 * _MIN_VAL:
        raise ValueError(
            f"{', '.join(names)} have {total} conversations together, expected {2 * _MIN_VAL} or more: {_MIN_VAL} are "
            "held out for validation; name more --tasks"
        )
    halves = {name: tasks.hold_out(task, max(_VAL_FRAC, _MIN_VAL / total)) for name, task in loaded.items()}
    train = [tasks.mixture([(halves[name][0], repeat) for name, repeat in turn], seed) for turn in turns]
    return tasks.chained(train), tasks.mixture([(val, 1) for _, val in halves.values()], seed)
