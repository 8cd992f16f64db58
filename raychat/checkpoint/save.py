"""Write a checkpoint whole or not at all, on all workers together."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping

import torch
from safetensors.torch import save
from torch import Tensor

from raychat import dist, paths
from raychat.checkpoint import checksums
from raychat.checkpoint.checksums import Checksum, Damaged
from raychat.checkpoint.find import all_in
from raychat.checkpoint.meta import FORMAT, TOKENIZER, WEIGHTS, Meta, read_meta
from raychat.model.base import Model
from raychat.optim import Optimizer
from raychat.provenance import commit
from raychat.tokenizer import Tokenizer


def save_checkpoint(
    folder: str, model: Model, optimizer: Optimizer | None, tokenizer: Tokenizer, meta: Meta, keep: int = 2
) -> str:
    """Write `folder`/step_<step>; every worker must call it. Return its path.

    Where it fails on one worker, it fails on all, and the checkpoints so far stay as they are.

    Args:
        keep: newest checkpoints in `folder` that stay, with the best by `metrics`: that of the highest `val_reward`, or
            else of the lowest `val_bpb`; 0 = all.

    Raises:
        FloatingPointError: A weight is NaN or infinite on some worker; nothing was written.
        ValueError: the workers do not see one storage (each wrote to a disk of its own).
        OSError: this worker could not write a file; the others raise RuntimeError.
    """
    final = paths.join(folder, f"step_{meta.step:06d}")
    _check_finite(final, model)
    # A local folder is filled under a temporary name and renamed; an object store gets meta.json last.
    target = paths.join(folder, f".tmp-step_{meta.step:06d}") if paths.is_local(folder) else final
    dist.on_rank_0(lambda: paths.remove(target))
    try:
        written = dist.together(lambda: _write_own_files(target, model, optimizer, tokenizer))
        files = {name: checksum for own in written for name, checksum in own.items()}
        dist.on_rank_0(lambda: _publish(target, final, dataclasses.replace(meta, commit=commit(), files=files)))
    except Exception:
        if dist.world().rank == 0:
            with contextlib.suppress(Exception):  # what failed first is raised
                paths.remove(target)
        raise
    dist.on_rank_0(lambda: _remove_old(folder, meta.step, keep))
    return final


def _check_finite(path: str, model: Model) -> None:
    """Raise FloatingPointError on every worker if a weight is NaN or infinite on some worker."""
    weights = model.state_dict()
    finite = torch.stack([tensor.isfinite().all() for tensor in weights.values()]).tolist()
    bad = [name for name, is_finite in zip(weights, finite, strict=True) if not is_finite]
    for rank, names in enumerate(dist.gather(bad[:3])):
        if names:
            raise FloatingPointError(
                f"{path} is not saved: NaN or infinite weights in {', '.join(names)} (worker {rank}); expected finite "
                "numbers. The checkpoints so far are good. Train a new --run with a lower learning rate"
            )


def _write_own_files(
    target: str, model: Model, optimizer: Optimizer | None, tokenizer: Tokenizer
) -> dict[str, Checksum]:
    """Write this worker's files of a checkpoint; return their checksums, of the bytes in memory."""
    rank, files = dist.world().rank, dict[str, Checksum]()
    if optimizer is not None:
        files |= checksums.write(target, f"optimizer_{rank:03d}.safetensors", save(_on_cpu(optimizer.state())))
    if rank == 0:
        files |= checksums.write(target, WEIGHTS, save(_on_cpu(model.state_dict())))
        tokenizer.save(paths.join(target, paths.parent(TOKENIZER)))
        files[TOKENIZER] = Checksum.of(paths.read_bytes(paths.join(target, TOKENIZER)))
    return files


def _publish(target: str, final: str, meta: Meta) -> None:
    """Complete a checkpoint whose files lie in `target` and give it its name."""
    try:
        checksums.check_sizes(target, meta.files)
    except Damaged as damage:
        raise ValueError(
            f"{damage}: the workers do not share this storage, or it lost a file; set --cluster.storage-path to a "
            "folder or bucket that all of them see"
        ) from damage
    paths.write_json(paths.join(target, paths.LAST_FILE), {"format": FORMAT, **dataclasses.asdict(meta)})
    if target != final:
        paths.remove(final)
        paths.rename(target, final)


def _remove_old(folder: str, step: int, keep: int) -> None:
    """Remove the checkpoints up to `step` but the `keep` newest (0 = all) and the best."""
    # A later one must be damaged, or training would have resumed from it: it does not count.
    there = [path for path in all_in(folder) if int(paths.name(path).removeprefix("step_")) <= step]
    if not keep or len(there) <= keep:
        return
    scores = {path: _score(read_meta(path).metrics) for path in there}
    # Of equal ones the oldest: a checkpoint between two evaluations has the figure of the one before.
    best = max((path for path in there if math.isfinite(scores[path])), key=scores.__getitem__, default=None)
    for path in there[:-keep]:
        if path != best:
            paths.remove(path)


def _score(metrics: Mapping[str, float]) -> float:
    """Return how good a checkpoint is: its reward where there is one, else less for more bits per byte."""
    return metrics["val_reward"] if "val_reward" in metrics else -metrics.get("val_bpb", math.nan)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: t.detach().cpu().contiguous() for k, t in tensors.items()}
