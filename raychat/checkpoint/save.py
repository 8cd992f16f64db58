"""Write a checkpoint whole or not at all, on all workers together.

Every worker copies its part to memory, and a thread of its own writes that while training goes on. Collectives stay on
the main thread: `begin_checkpoint`, then `Saving.publish`. A kill between the two loses this checkpoint only.
"""

import contextlib
import dataclasses
import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait

import torch
from safetensors.torch import save

from raychat import dist, paths
from raychat.checkpoint import checksums
from raychat.checkpoint.checksums import Checksum, Damaged
from raychat.checkpoint.find import all_in
from raychat.checkpoint.meta import FORMAT, TOKENIZER, WEIGHTS, Meta, read_meta
from raychat.model.base import Model
from raychat.optim import Optimizer
from raychat.provenance import commit
from raychat.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Saving:
    """A checkpoint whose files the workers are writing."""

    final: str
    target: str  # where the files go
    meta: Meta
    keep: int
    files: Future[dict[str, Checksum]]  # this worker's

    def is_written(self, timeout_s: float = 0.0) -> bool:
        """Wait at most `timeout_s`; tell whether all workers are done, well or not. Every worker must call it."""
        wait([self.files], timeout_s)
        return all(dist.gather(self.files.done()))

    def publish(self) -> str:
        """Wait for the files of all workers and give the checkpoint its name; every worker must call it. Return it.

        Where it fails on one worker, it fails on all, and the checkpoints so far stay as they are.

        Raises:
            ValueError: the workers do not see one storage (each wrote to a disk of its own).
            OSError: this worker could not write a file; the others raise RuntimeError.
        """
        try:
            written = dist.together(self.files.result)  # also where it raises, no worker is writing any more
            files = {name: checksum for own in written for name, checksum in own.items()}
            meta = dataclasses.replace(self.meta, commit=commit(), files=files)
            dist.on_rank_0(lambda: _publish(self.target, self.final, meta))
        except Exception:
            if dist.world().rank == 0:
                with contextlib.suppress(Exception):  # what failed first is raised
                    paths.remove(self.target)
            raise
        dist.on_rank_0(lambda: _remove_old(paths.parent(self.final), self.meta.step, self.keep))
        return self.final


def save_checkpoint(
    folder: str, model: Model, optimizer: Optimizer | None, tokenizer: Tokenizer, meta: Meta, keep: int = 2
) -> str:
    """Write `folder`/step_<step> and return its path; see `begin_checkpoint` and `Saving.publish`."""
    return begin_checkpoint(folder, model, optimizer, tokenizer, meta, keep).publish()


def begin_checkpoint(
    folder: str, model: Model, optimizer: Optimizer | None, tokenizer: Tokenizer, meta: Meta, keep: int = 2
) -> Saving:
    """Begin to write `folder`/step_<step>, with weights and optimizer state as they are now; every worker must call it.

    Args:
        keep: newest checkpoints in `folder` that stay, with the best by `metrics`: that of the highest `val_reward`, or
            else of the lowest `val_bpb`; 0 = all.

    Raises:
        FloatingPointError: A weight is NaN or infinite on some worker; nothing was written.
    """
    final = paths.join(folder, f"step_{meta.step:06d}")
    if optimizer is not None:
        optimizer.send_exact()
    _check_finite(final, model)
    # A local folder is filled under a temporary name and renamed; an object store gets meta.json last.
    target = paths.join(folder, f".tmp-step_{meta.step:06d}") if paths.is_local(folder) else final
    dist.on_rank_0(lambda: paths.remove(target))
    contents = dict[str, bytes]()
    dist.together(lambda: contents.update(_contents(model, optimizer)))
    files = _in_thread(lambda: _write_own_files(target, contents, tokenizer))
    return Saving(final, target, meta, keep, files)


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


def _in_thread(action: Callable[[], dict[str, Checksum]]) -> Future[dict[str, Checksum]]:
    """Call `action` in a thread that does not keep a process alive which ends by an error."""
    future = Future[dict[str, Checksum]]()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future


def _contents(model: Model, optimizer: Optimizer | None) -> dict[str, bytes]:
    """Copy this worker's tensors to memory, as the files that they become."""
    rank, contents = dist.world().rank, dict[str, bytes]()
    if optimizer is not None:
        contents[f"optimizer_{rank:03d}.safetensors"] = save(optimizer.state())
    if rank == 0:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        contents[WEIGHTS] = save(weights)
    return contents


def _write_own_files(target: str, contents: Mapping[str, bytes], tokenizer: Tokenizer) -> dict[str, Checksum]:
    """Write this worker's files of a checkpoint; return their checksums, of the bytes in memory."""
    files = dict[str, Checksum]()
    for name, content in contents.items():
        files |= checksums.write(target, name, content)
    if WEIGHTS in contents:
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
