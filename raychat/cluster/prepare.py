"""Turn text or conversations into token shards with Ray Data, block by block, while training already reads the first.

A block is packed from its own documents alone and written whole by the task that packed it. So the rows and their order
depend on nothing but the inputs: not on the number of tasks, nor on what was killed and redone. A folder of tokens is
named by a fingerprint of its inputs: runs over the same inputs share it, and a rerun makes only what is missing.
"""

import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.data
from ray import cloudpickle

from raychat import paths
from raychat.cluster import Cluster
from raychat.cluster.launch import connect
from raychat.data import shards
from raychat.data.pack import BlockCounts, Packing, conversations, documents, make_block

__all__ = ["Packing", "Preparation", "conversations", "documents", "prepare", "prepare_async"]

_SAY_EVERY_S = 5.0


def prepare(packing: Packing, cluster: Cluster, *, say: Callable[[str], None] = print) -> str:
    """Make the missing blocks of a folder of token shards, wait for them, and return the folder.

    With 0 workers in this process, else as Ray Data tasks over the cluster.

    Raises RuntimeError with the cause when a block cannot be made; `failed.txt` in the folder then tells its readers.
    """
    with prepare_async(packing, cluster, say=say) as preparation:
        return preparation.result()


def prepare_async(packing: Packing, cluster: Cluster, *, say: Callable[[str], None] = print) -> "Preparation":
    """Begin to make the missing blocks and return at once, so that training starts on the first of them.

    As a context manager it stops making blocks when the training inside is over and needs no more of them.
    """
    shards.write_plan(packing.folder, packing.plan)
    paths.remove(paths.join(packing.folder, shards.FAILED_FILE))
    present = shards.rows_by_block(paths.names(packing.folder))
    missing = [block for block in range(packing.plan.num_blocks) if block not in present]
    if missing and cluster.workers > 0:
        connect(cluster)
    return Preparation(packing, missing, cluster, say)


class Preparation:
    """Blocks being made by a thread of this process (and the tasks it starts)."""

    def __init__(self, packing: Packing, missing: Sequence[int], cluster: Cluster, say: Callable[[str], None]) -> None:
        self.folder = packing.folder
        self._packing, self._missing, self._cluster, self._say = packing, missing, cluster, say
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prepare", daemon=True)
        self._thread.start()

    def result(self) -> str:
        """Wait until every block is there and return the folder. Raises RuntimeError with the cause of a failure."""
        self._thread.join()
        if self._error is not None:
            raise RuntimeError(
                f"the tokens in {self.folder} could not be made: {_described(self._error)}"
            ) from self._error
        return self.folder

    def stop(self) -> None:
        """Make no more blocks. Those that are there stay, and a later preparation goes on from them."""
        self._stopping.set()
        self._thread.join(timeout=5.0)  # the block being made may take longer; nothing waits for it

    def __enter__(self) -> "Preparation":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            self._make_missing()
        except BaseException as error:
            self._error = error
            text = f"{_described(error)}\n\n{''.join(traceback.format_exception(error))}"
            paths.write_text(paths.join(self.folder, shards.FAILED_FILE), text)

    def _make_missing(self) -> None:
        if not self._missing:
            return
        name, capacity = paths.name(self.folder), self._packing.plan.sequence_len + 1
        self._say(f"{name}: making {len(self._missing)} of {self._packing.plan.num_blocks} blocks")
        make = _in_this_process if self._cluster.workers == 0 else _on_the_cluster
        started = said = time.monotonic()
        total = BlockCounts(0, 0, 0)
        for done, counts in enumerate(make(self._packing, self._missing, self._cluster), start=1):
            total = BlockCounts(*map(sum, zip(total, counts, strict=True)))
            now = time.monotonic()
            if now - said >= _SAY_EVERY_S or done == len(self._missing):
                said, spent = now, now - started
                left_s = spent / done * (len(self._missing) - done)
                self._say(
                    f"{name}: {done}/{len(self._missing)} blocks, {total.rows:,} rows of {capacity} tokens, "
                    f"{total.used:,} tokens used, {total.lost:,} lost ({total.lost_frac:.2%}), "
                    f"{total.used / spent:,.0f} tok/s" + (f", {left_s:.0f} s left" if left_s else "")
                )
            if self._stopping.is_set():
                return


# ---------------------------------------------------------------------------------------------- making blocks


def _in_this_process(packing: Packing, missing: Sequence[int], _: Cluster) -> Iterator[BlockCounts]:
    for block in missing:
        yield make_block(packing.folder, block, packing.pack, packing.blocks[block])


def _on_the_cluster(packing: Packing, missing: Sequence[int], cluster: Cluster) -> Iterator[BlockCounts]:
    """Make blocks as Ray Data tasks, the first ones first; yield what each holds as it is done.

    Each task gets its own block's inputs only, and writes its own output: only counts go back through Ray. An
    error goes back as text: Ray would keep its own wrapping of it and lose the error.
    """
    folder, pack = packing.folder, packing.pack
    items = [{"block": block, "inputs": cloudpickle.dumps(packing.blocks[block])} for block in missing]

    def make(item: dict[str, Any]) -> dict[str, Any]:
        try:
            counts = make_block(folder, item["block"], pack, cloudpickle.loads(item["inputs"]))
        except Exception as error:
            return {**BlockCounts(0, 0, 0)._asdict(), "error": _described(error), "traceback": traceback.format_exc()}
        return {**counts._asdict(), "error": "", "traceback": ""}

    data = ray.data.from_items(items, override_num_blocks=len(items))
    data.context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its start, its plan, its end; errors are raised
    tasks, num_cpus = _room(cluster)
    for made in data.map(make, num_cpus=num_cpus, compute=ray.data.TaskPoolStrategy(size=tasks)).iter_rows():
        if made["error"]:
            failed = _TaskFailed(made["error"])
            failed.add_note(made["traceback"])
            raise failed
        yield BlockCounts(made["rows"], made["used"], made["lost"])


class _TaskFailed(Exception):
    """What a task raised: its type and message, its traceback as a note."""


def _room(cluster: Cluster) -> tuple[int, float]:
    """Return how many tasks should run at a time and how many logical CPUs each should ask for.

    As many tasks as cores; on one machine Ray may have been told of more CPUs than there are. Where training takes so
    many CPUs that tasks could wait for ever for one, while training waits for them, they ask for none.
    """
    cpus = int(ray.cluster_resources().get("CPU", 1))
    alone = sum(node["Alive"] for node in ray.nodes()) == 1
    tasks = max(1, min(cpus, os.cpu_count() or 1) if alone else cpus - cluster.workers)
    return tasks, 1.0 if cpus >= cluster.workers + 2 else 0.0


def _described(error: BaseException) -> str:
    return str(error) if isinstance(error, _TaskFailed) else f"{type(error).__name__}: {error}"
