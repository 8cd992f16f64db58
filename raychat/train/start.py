"""What a stage starts from: its own newest checkpoint, else its parent's, else freshly drawn weights."""

from typing import NamedTuple

import torch

from raychat import checkpoint, dist, paths
from raychat.checkpoint import Meta
from raychat.device import product_dtype
from raychat.model import registry
from raychat.model.base import Model
from raychat.optim import Optimizer, build_optimizer
from raychat.train.finished import check_recipe, check_seen, check_shared
from raychat.train.fp8 import use_fp8
from raychat.train.products import use_bf16
from raychat.train.stage import Stage

FROM_ZERO = "momenta_from_zero"  # in a checkpoint's metrics: 1 where the stage's momenta should have been its parent's


class Origin(NamedTuple):
    """What a stage starts from."""

    path: str | None  # a checkpoint, the stage's own or its parent; None = freshly drawn weights
    has_momenta: bool  # whether the optimizer's state is taken from there, too
    tokenizer: str  # its folder
    meta: Meta  # the own checkpoint's; at step 0 that of a stage without one


def find_origin(stage: Stage) -> Origin:
    """Find what a stage starts from, and check it; the parent is read only for the first start. Every worker calls it.

    Raises:
        ValueError: The workers do not share the storage, the stage there has another recipe, or what the stage would
            start from is damaged.
    """
    check_shared(stage.folder)
    own = checkpoint.latest_verified(stage.folder)
    if own is not None:
        meta = checkpoint.read_meta(own)
        check_recipe(stage.folder, meta.recipe, stage.recipe)
        _say(f"{stage.name}: resumes at step {meta.step} of {stage.steps}")
        return Origin(own, True, paths.join(own, "tokenizer"), meta)
    check_seen(stage.tokenizer, stage.tokenizer)
    has_momenta, metrics = False, dict[str, float]()
    if stage.parent is not None:
        has_momenta = not stage.fresh and checkpoint.has_optimizer(stage.parent)
        if not (stage.fresh or has_momenta):
            _say(f"{stage.name}: {stage.parent} has no optimizer state; momenta begin at 0, with a warm-up")
            metrics[FROM_ZERO] = 1
        checkpoint.verify(stage.parent, optimizer=has_momenta)
    return Origin(stage.parent, has_momenta, stage.tokenizer, Meta(0, stage.recipe, metrics=metrics))


def _say(line: str) -> None:
    if dist.world().rank == 0:
        print(line, flush=True)


def build(stage: Stage, origin: Origin, device: torch.device, dtype: torch.dtype) -> tuple[Model, Optimizer]:
    """Build the model and the optimizer of a stage as they are at its origin."""
    recipe = stage.recipe
    model = registry.build(recipe.model)
    if origin.path is None:
        model.init_weights(recipe.seed)
    else:
        checkpoint.load_weights(origin.path, model)
    model.place(device, dtype)
    if stage.matrices_only:
        # Vectors and scalars each move the whole policy at once, at rates made for pretraining: in one step they
        # would change it more than all matrices together.
        for p in model.parameters():
            p.requires_grad_(p.dim() == 2 and min(p.shape) > 1)
    if stage.runtime.fp8:
        use_fp8(model)
    elif not stage.matrices_only and product_dtype(device) != dtype:
        use_bf16(model)
    optimizer = build_optimizer(
        model,
        lr_scale=recipe.lr_scale,
        weight_decay=recipe.weight_decay,
        adamw=recipe.adamw,
        matrices_read_as=dtype,
    )
    if origin.path is not None and origin.has_momenta:
        checkpoint.load_optimizer(origin.path, optimizer)
    return model.train(), optimizer
