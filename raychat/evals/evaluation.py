"""The model under evaluation, and what an evaluation of it is: pieces of work that may be done anywhere, then a sum."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch

from raychat import checkpoint
from raychat.device import device
from raychat.engine.engine import Engine
from raychat.model.base import Model
from raychat.tokenizer import Tokenizer

MAX_SEQUENCES = 32  # generated at once


class LoadedModel:
    """A model and its tokenizer; the engine that generates with them is made when first asked for."""

    def __init__(self, model: Model, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def load(cls, path: str, where: torch.device | None = None) -> "LoadedModel":
        """Load a checkpoint (local or remote); `where` None = this process's GPU, or the CPU."""
        model, _ = checkpoint.load_model(path, where or device())
        return cls(model, checkpoint.load_tokenizer(path))

    @cached_property
    def engine(self) -> Engine:
        return Engine(self.model, self.tokenizer, max_sequences=MAX_SEQUENCES)


Call = Callable[[LoadedModel], Any]  # picklable; its result as well


class Evaluation(NamedTuple):
    """One evaluation, cut into pieces whose size does not depend on who does them, so that neither do the figures."""

    name: str
    work: Sequence[Call]
    finish: Callable[[list[Any]], dict[str, Any]]  # from the pieces' results, in order, to what eval.json says


def pieces(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """Cut item numbers into pieces of at most `size`.

    >>> pieces([3, 1, 4, 1, 5], 2)
    [[3, 1], [4, 1], [5]]
    """
    return [indices[i : i + size] for i in range(0, len(indices), size)]
