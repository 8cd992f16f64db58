"""A stage that trains on token shards: base, mid and SFT, which differ only in the values given here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from raychat import checkpoint, dist
from raychat.data.batches import steps_of, validation_batches
from raychat.data.shards import TokenRows
from raychat.device import compiled, compute_dtype, device
from raychat.evals.bpb import bits_per_byte, unigram_bpb
from raychat.log import Report
from raychat.model.gpt import GPT, GPTConfig
from raychat.optim import MuonAdamW
from raychat.optim.schedule import Schedule
from raychat.tokenizer import Tokenizer
from raychat.train import stage
from raychat.train.stage import Metrics, Stage

_UNIGRAM_ROWS = 4096  # training rows that the unigram model is counted on


@dataclass(frozen=True)
class TokenStage:
    """Everything that a worker is told; picklable, paths absolute or URLs."""

    name: str  # "<run>/<stage>"
    folder: str  # of its checkpoints and metrics
    tokenizer: str  # folder
    rows: str  # folder of training token shards, possibly still growing
    val_rows: str  # folder of validation token shards
    architecture: GPTConfig
    steps: int
    rows_per_step: int
    schedule: Callable[[int], Schedule]  # from the number of steps
    lr_scale: float
    weight_decay: float
    parent: str | None = None  # checkpoint whose weights and momenta it starts from; None = freshly drawn weights
    seed: int = 0
    device_rows: int | None = None  # rows in a micro-batch; None = by the device
    max_val_rows: int | None = None
    eval_every: int = 0
    save_every: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


def train_on_rows(work: TokenStage, report: Report) -> dict[str, Any]:
    """Run the stage on this worker, one of any number; return its summary."""
    where, world = device(), dist.world()
    torch.manual_seed(work.seed)
    tokenizer = Tokenizer.load(work.tokenizer)
    model, optimizer = _start(work, where)
    forward = compiled(model)
    rows, val_rows = TokenRows(work.rows), TokenRows(work.val_rows)
    num_val = min(val_rows.num_rows(), work.max_val_rows or val_rows.num_rows())
    device_rows = work.device_rows or default_device_rows(work.architecture, where)
    token_bytes = torch.from_numpy(tokenizer.token_bytes()).to(where)

    def validate() -> Metrics:
        batches = validation_batches(val_rows, num_val, device_rows=device_rows, world=world, device=where)
        return {"val_bpb": bits_per_byte(forward, batches, token_bytes)}

    return stage.run(
        Stage(
            name=work.name,
            folder=work.folder,
            tokenizer=tokenizer,
            steps=work.steps,
            tokens_per_step=work.rows_per_step * work.architecture.sequence_len,
            schedule=work.schedule(work.steps),
            settings=work.settings,
            parent=work.parent,
            eval_every=work.eval_every,
            save_every=work.save_every,
        ),
        model,
        optimizer,
        lambda start: steps_of(
            rows, rows_per_step=work.rows_per_step, device_rows=device_rows, start=start, world=world, device=where
        ),
        report,
        forward=forward,
        evaluate=validate,
        facts=lambda: {
            "unigram_bpb": _unigram(rows, val_rows, num_val, work, tokenizer),
            "val_rows": work.val_rows,
        },
    )


def _start(work: TokenStage, where: torch.device) -> tuple[GPT, MuonAdamW]:
    model = GPT(work.architecture)
    if work.parent is None:
        model.init_weights(work.seed)
    else:
        checkpoint.load_weights(work.parent, model)
    model.place(where, compute_dtype(where))
    optimizer = MuonAdamW(
        model.named_parameters(),
        lr_scale=work.lr_scale,
        weight_decay=work.weight_decay,
        dim=work.architecture.n_embd,
    )
    if work.parent is not None:
        checkpoint.load_optimizer(work.parent, optimizer)
    return model, optimizer


def default_device_rows(architecture: GPTConfig, where: torch.device) -> int:
    """Choose the rows of a micro-batch: what an 80 GB GPU holds at this depth, or 4,096 tokens on a CPU."""
    if where.type == "cpu":
        return max(1, 4096 // architecture.sequence_len)
    rows = 32 if architecture.n_layer <= 20 else 16 if architecture.n_layer <= 26 else 8
    return max(1, rows * 2048 // architecture.sequence_len)


def _unigram(rows: TokenRows, val_rows: TokenRows, num_val: int, work: TokenStage, tokenizer: Tokenizer) -> float:
    """Bits per byte of the unigram model of the same tokens: what a model must beat to have learnt anything."""
    seen = min(rows.available(), work.steps * work.rows_per_step, _UNIGRAM_ROWS)
    return unigram_bpb(rows.rows(np.arange(seen)), val_rows.rows(np.arange(num_val)), tokenizer.token_bytes())
