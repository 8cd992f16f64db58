"""Protocols: how an evaluation chooses items, draws few-shot examples and words its questions.

Under `nanochat`, items, examples and prompts of CORE, and the prompts of multiple choice, are nanochat's to the letter:
figures can stand beside those that nanochat reports, and its chat models are asked as they were trained to be.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from raychat.evals.bundle import Item
from raychat.evals.evaluation import SEED
from raychat.tasks.choices import Wording, nanochat_wording, own_wording

Items = Sequence[Item]


class Protocol(NamedTuple):
    pool: Callable[[Items, int | None], Items]  # a CORE task's items, at most so many -> those to draw from, in order
    seed: Callable[[str, int], int | str]  # the task's label, an item's index in the pool -> seed of its examples
    wording: Wording  # of multiple choice in chat


def _all_items(items: Items, max_items: int | None) -> Items:
    """Return all items: the examples of a few come from all others."""
    return items


def _own_seed(label: str, index: int) -> str:
    return f"{SEED}/{label}/{index}"


def _shuffled(items: Items, max_items: int | None) -> Items:
    """Shuffle, then cut: the examples come from the items that are left."""
    order = list(items)
    random.Random(1337).shuffle(order)
    return order[:max_items]


def _nanochat_seed(label: str, index: int) -> int:
    return 1234 + index


OWN = Protocol(_all_items, _own_seed, own_wording)
PROTOCOLS: Mapping[str, Protocol] = {"raychat": OWN, "nanochat": Protocol(_shuffled, _nanochat_seed, nanochat_wording)}
