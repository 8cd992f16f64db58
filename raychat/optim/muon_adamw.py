"""The optimizer: which parameter is updated how, one step, and the state in and out."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from raychat.dist import world
from raychat.model.base import AdamW, Muon
from raychat.optim.groups import Matrices, Matrix, ParamGroup, ReplicatedAdam, ShardedAdam, StepRates
from raychat.optim.shards import Wait, sum_everywhere

SMALL = 2**14  # elements; every worker updates a smaller AdamW parameter
STEP = "optimizer/step"


class MuonAdamW:
    """Update every parameter by Muon or AdamW as its rates say, sharded over the workers as in ZeRO-2.

    Gradients are summed over the workers, not averaged: every batch carries its own weights. Each worker updates the
    part it owns, then the parts are gathered. All sums begin at once, and each is awaited right before its update;
    gathers overlap the updates that follow. With one worker the same code runs without collectives.

    Build it when the parameters are on their device and the process group is up. Workers must hold equal parameters.
    Parameters that require no gradient are left alone.

    Args:
        named_parameters: `model.named_parameters()`. Muon's matrices are float32; the rest may be bf16.
        rates: how each parameter is updated, by name (`Model.optimizer_rates`).
        lr_scale: times every learning rate that grows with the batch.
        weight_decay: Muon's.
        max_grad_norm: to which the gradient of all parameters together is scaled down; None = never.
        matrices_read_as: dtype in which every pass reads Muon's matrices. A worker's matrices are sent in it, so what
            passes compute is the same with float32; before they are read in another way, call `send_exact`.

    Raises:
        ValueError: A parameter has no rates.

    Source: ZeRO arXiv:1910.02054; the updates' sources are in `updates`.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        rates: Mapping[str, AdamW | Muon],
        *,
        lr_scale: float = 1.0,
        weight_decay: float = 0.28,
        max_grad_norm: float | None = None,
        matrices_read_as: torch.dtype = torch.float32,
    ) -> None:
        self.num_steps = 0  # taken so far; AdamW's bias correction counts them
        self._world, self._max_grad_norm = world(), max_grad_norm
        params = {name.replace("_orig_mod.", ""): p for name, p in named_parameters if p.requires_grad}
        if unknown := params.keys() - rates.keys():
            raise ValueError(f"no learning rates for the parameters {_some(unknown)}; the model must name them")
        self._params = list(params.values())
        large: list[ParamGroup] = []
        small: list[tuple[str, Tensor, AdamW]] = []
        matrices: list[Matrix] = []
        for name, p in params.items():
            rate = rates[name].scaled(lr_scale)
            if isinstance(rate, Muon):
                matrices.append(Matrix(name, p, rate.lr))
            elif p.numel() < SMALL:
                small.append((name, p, rate))
            else:
                large.append(ShardedAdam(name, p, rate, self._world))
        # The matrices first: their update takes longest, and the others' sums are on their way meanwhile.
        self._matrices = Matrices(matrices, weight_decay, matrices_read_as, self._world) if matrices else None
        self._groups: list[ParamGroup] = [self._matrices, *large] if self._matrices else large
        if small:
            self._groups.append(ReplicatedAdam(small, self._world))

    @torch.no_grad()
    def step(self, lr: float = 1.0, momentum: float = 0.95, weight_decay: float = 1.0) -> None:
        """Sum the gradients over the workers and update every parameter. Every worker must call it.

        A parameter without a gradient on some worker counts as one with gradient 0 there.

        Args:
            lr: times every learning rate.
            momentum: Muon's.
            weight_decay: times Muon's weight decay.
        """
        self.num_steps += 1
        rates = StepRates(self.num_steps, lr, momentum, weight_decay)
        sums = [group.reduce() for group in self._groups]
        if self._max_grad_norm is not None:
            sums = self._scaled_down([wait() for wait in sums], self._max_grad_norm)
        gathers = [group.update(wait(), rates) for group, wait in zip(self._groups, sums, strict=True)]
        for finish in gathers:
            finish()

    def _scaled_down(self, grads: list[Tensor], max_norm: float) -> list[Wait]:
        """Scale this worker's parts of the gradient so that the norm of the whole is at most `max_norm`.

        Source: Pascanu et al. 2013, arXiv:1211.5063, as PyTorch's `clip_grad_norm_`.
        """
        # Every worker has the whole of what all update: it counts once.
        counts = [not isinstance(group, ReplicatedAdam) or self._world.rank == 0 for group in self._groups]
        mine = [grad.float().square().sum() for grad, count in zip(grads, counts, strict=True) if count]
        square = sum_everywhere(torch.stack(mine).sum() if mine else grads[0].new_zeros(()), self._world)()
        factor = (max_norm / (square.sqrt() + 1e-6)).clamp(max=1.0)
        return [partial(torch.mul, grad, factor.to(grad.dtype)) for grad in grads]

    @torch.no_grad()
    def send_exact(self) -> None:
        """Give every worker all weights as their owners have them. Every worker must call it."""
        if self._matrices is not None:
            self._matrices.send_exact()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for p in self._params:
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """Copy this worker's part of the state to the CPU.

        Returns:
            `<parameter>/<slot>/<first row>` -> rows of that slot. The union over the workers is the whole state.
        """
        state = {} if self._world.rank else {f"{STEP}/0": torch.tensor([self.num_steps])}
        for group in self._groups:
            for slot in group.slots():
                if slot.owned and len(slot.rows):
                    state[f"{slot.name}/{slot.first_row}"] = slot.rows.to("cpu", copy=True)
        return state

    def load_state(self, shards: Mapping[str, Tensor]) -> None:
        """Take this worker's rows out of what all workers, of any number, returned from `state`.

        Only the shards that hold such rows are read from the mapping.

        Raises:
            ValueError: If the shards are not the whole state of an optimizer over the same parameters.
        """
        firsts: dict[str, list[int]] = defaultdict(list)
        for key in shards:
            name, _, row = key.rpartition("/")
            if not row.isdecimal():
                raise ValueError(f"optimizer state: expected keys <parameter>/<slot>/<first row>, got {key!r}")
            firsts[name].append(int(row))
        expected = {STEP}.union(*(group.slot_names() for group in self._groups))
        if firsts.keys() != expected:
            raise ValueError(
                f"optimizer state does not fit the model: {_some(expected - firsts.keys())} missing, "
                f"{_some(firsts.keys() - expected)} unknown; it belongs to another architecture or is incomplete"
            )
        for group in self._groups:
            for slot in group.slots():
                slot.fill(shards, sorted(firsts[slot.name]))
        self.num_steps = int(shards[f"{STEP}/0"])


def _some(names: set[str]) -> str:
    """Name up to three of a set, and how many there are.

    >>> _some({"a", "b"}), _some(set())
    ('2 (a, b)', 'none')
    """
    shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} ({shown})" if names else "none"
