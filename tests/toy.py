"""The toy stage that tests of training are made of: a byte tokenizer, a two-layer model, rows that count upwards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer

from raychat.checkpoint import Meta
from raychat.data import shards
from raychat.model import registry
from raychat.model.base import Model
from raychat.model.gpt import GPT, GPTConfig
from raychat.optim import schedule
from raychat.recipe import Recipe, Runtime
from raychat.tokenizer import SPECIAL_TOKENS
from raychat.train.stage import Stage
from raychat.train.token_feed import TokenSource

VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
CONFIG = GPTConfig(sequence_len=32, vocab_size=VOCAB_SIZE, n_layer=2, n_head=2, n_kv_head=2, n_embd=32)


def model(config: GPTConfig = CONFIG, seed: int = 0) -> GPT:
    built = GPT(config)
    built.init_weights(seed)
    return built


def token_folder(folder: str, *, num_rows: int = 40, num_blocks: int = 2, masked: bool = False, seed: int = 0) -> str:
    """Write token shards whose rows are learnable: every row counts up from a random start."""
    generator = np.random.default_rng(seed)
    T = CONFIG.sequence_len
    shards.write_plan(folder, shards.Plan(num_blocks, T, VOCAB_SIZE, masked, inputs=f"counting-{seed}"))
    for block in range(num_blocks):
        n = num_rows // num_blocks
        rows = ((generator.integers(0, 64, (n, 1)) + np.arange(T + 1)) % 128).astype(np.uint16)
        mask = (generator.random(rows.shape) < 0.4).astype(np.uint16)
        shards.write_block(folder, block, np.stack((rows, mask), axis=1) if masked else rows)
    return folder


STEPS = 8


def recipe(model: GPT | None = None, **changes: Any) -> Recipe:
    """The recipe of a stage that trains `model` (None = the toy model)."""
    architecture = registry.architecture_of(model or GPT(CONFIG))
    values: dict[str, Any] = {"model": architecture, "batch_tokens": 6 * CONFIG.sequence_len, "lr_scale": 0.3}
    return Recipe(**(values | {"weight_decay": 0.1} | changes))


def meta(step: int = 0, model: GPT | None = None, **changes: Any) -> Meta:
    """What a checkpoint of that recipe says of itself."""
    return Meta(step, recipe(model, **changes))


RUNTIME = Runtime(device_rows=4, eval_every=4, save_every=3)


def dtypes_of_rows(monkeypatch: pytest.MonkeyPatch, feed: str) -> list[torch.dtype]:
    """Give every micro-batch of a feed's module one row; return the dtypes that they are counted in from here on."""
    dtypes: list[torch.dtype] = []

    def device_rows(model: Model, device: torch.device, num_workers: int, dtype: torch.dtype, budget: float = 1) -> int:
        dtypes.append(dtype)
        return 1

    monkeypatch.setattr(f"{feed}.device_rows", device_rows)
    return dtypes


def token_stage(root: Path, name: str, runtime: Runtime = RUNTIME, **changes: Any) -> Stage:
    """A stage of 8 steps on two folders of token shards, below `root`; evaluated every 4 and saved every 3 steps."""
    byte_tokenizer().save(str(root / "runs" / "test" / "tokenizer"))
    for folder, seed in (("train", 0), ("val", 1)):
        token_folder(str(root / folder), seed=seed)
    return Stage(
        name=f"test/{name}",
        storage=str(root),
        recipe=recipe(**changes),
        schedule=schedule.base,
        steps=STEPS,
        source=TokenSource(str(root / "train"), str(root / "val")),
        runtime=runtime,
    )
