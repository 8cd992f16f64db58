"""The optimizer: which parameter is updated how, one step, and the state in and out."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from raychat.dist import world
from raychat.optim.groups import AdamRates, Group, Matrices, Now, ReplicatedAdam, ShardedAdam

MUON_LR = 0.02
ADAMW = {  # lr, betas, weight decay
    "lm_head.weight": AdamRates(0.008, (0.8, 0.96), 0.01),
    "wte.weight": AdamRates(0.3, (0.8, 0.995), 0.001),
    "value_embeds.*.weight": AdamRates(0.15, (0.8, 0.995), 0.01),
    "resid_scale": AdamRates(0.005, (0.8, 0.95), 0.05),
    "x0_scale": AdamRates(0.5, (0.96, 0.95), 0.0),
    "smear_gate.weight": AdamRates(0.2, (0.8, 0.95), 0.0),
    "smear_lambda": AdamRates(0.2, (0.8, 0.95), 0.0),
    "backout_lambda": AdamRates(0.2, (0.8, 0.95), 0.0),
}
WIDTH_SCALED = ("lm_head.weight", "wte.weight", "value_embeds.*.weight")  # lr times (width / 768)^-0.5
SMALL = 2**14  # elements; every worker updates a smaller AdamW parameter
STEP = "optimizer/step"


class MuonAdamW:
    """Muon for every matrix named `blocks.*`, AdamW with the rates of `ADAMW` for the rest; sharded as in ZeRO-2.

    Gradients are summed over the workers, not averaged: every batch carries its own weights. Each worker updates the
    part it owns, then the parts are gathered. All sums begin at once and each is awaited right before its update;
    gathering goes on beside the updates that follow. One worker takes the same road without collectives.

    Build it when the parameters are on their device and the process group is up. Workers must hold equal parameters.
    Parameters that require no gradient are left alone.

    Args:
        named_parameters: `model.named_parameters()`. Matrices in blocks are float32; the rest may be bf16.
        dim: the model's width.
        lr_scale: times every learning rate.
        weight_decay: Muon's.

    Raises:
        ValueError: For a parameter without a rate: neither a matrix named `blocks.*` nor in `ADAMW`.

    Source: ZeRO arXiv:1910.02054; rates of nanochat (July 2026); the updates' sources are in `updates`.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        *,
        dim: int,
        lr_scale: float = 1.0,
        weight_decay: float = 0.28,
    ) -> None:
        self.num_steps = 0  # taken so far; AdamW's bias correction counts them
        self._world = world()
        params = {name.replace("_orig_mod.", ""): p for name, p in named_parameters if p.requires_grad}
        self._params = list(params.values())
        self._groups: list[Group] = []
        small: list[tuple[str, Tensor, AdamRates]] = []
        matrices: dict[torch.Size, list[str]] = defaultdict(list)
        for name, p in params.items():
            if name.startswith("blocks.") and p.dim() == 2:
                matrices[p.shape].append(name)
            elif p.numel() < SMALL:
                small.append((name, p, _rates(name, p, dim, lr_scale)))
            else:
                self._groups.append(ShardedAdam(name, p, _rates(name, p, dim, lr_scale), self._world))
        if small:
            self._groups.append(ReplicatedAdam(small, self._world))
        for names in matrices.values():
            stack = [params[name] for name in names]
            self._groups.append(Matrices(names, stack, MUON_LR * lr_scale, weight_decay, self._world))

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
        now = Now(self.num_steps, lr, momentum, weight_decay)
        sums = [group.reduce() for group in self._groups]
        gathers = [group.update(wait(), now) for group, wait in zip(self._groups, sums, strict=True)]
        for finish in gathers:
            finish()

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

    def load_state(self, pieces: Mapping[str, Tensor]) -> None:
        """Take this worker's rows out of the pieces that all of any number of workers returned from `state`.

        Only the pieces that hold such rows are read from the mapping.

        Raises:
            ValueError: If the pieces are not the whole state of an optimizer over the same parameters.
        """
        firsts: dict[str, list[int]] = defaultdict(list)
        for key in pieces:
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
                slot.fill(pieces, sorted(firsts[slot.name]))
        self.num_steps = int(pieces[f"{STEP}/0"])


def _rates(name: str, p: Tensor, dim: int, lr_scale: float) -> AdamRates:
    pattern = next((pattern for pattern in ADAMW if fnmatchcase(name, pattern)), None)
    if pattern is None:
        raise ValueError(
            f"no learning rate for parameter {name!r} of shape {tuple(p.shape)}: expected a matrix named blocks.* "
            f"(Muon) or one of {', '.join(ADAMW)} (AdamW); name its rates in raychat/optim/muon_adamw.py"
        )
    width_scale = (dim / 768) ** -0.5 if pattern in WIDTH_SCALED else 1.0
    return ADAMW[pattern]._replace(lr=ADAMW[pattern].lr * width_scale * lr_scale)


def _some(names: set[str]) -> str:
    """Name up to three of a set, and how many there are.

    >>> _some({"a", "b"}), _some(set())
    ('2 (a, b)', 'none')
    """
    shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} ({shown})" if names else "none"
