"""Turn text or conversations into token shards with Ray Data, block by block, while training already reads the first.

A block is packed from its own documents alone, and the task that packs it writes it whole. So the rows and their order
depend on the inputs alone: not on the number of tasks, nor on what was killed and redone. The folder of tokens is named
by a fingerprint of its inputs: runs over the same inputs share it, and a rerun makes only the missing blocks.
"""

import logging
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
from raychat.cluster.map import num_cores
from raychat.data import shards
from raychat.data.pack import Packing, make_block
from raychat.data.packing import Packed
from raychat.data.shards import BlockCounts
from raychat.log import Progress


def prepare(packing: Packing, cluster: Cluster, *, log: Callable[[str], None] = print) -> str:
    """Make the missing blocks of a folder of token shards, wait for them, and return the folder.

    With 0 workers this process makes them, else Ray Data tasks over the cluster.

    Raises:
        RuntimeError: a block cannot be made; its cause says why, as `failed.txt` in the folder does for readers.
    """
    with Preparation(packing, cluster, log=log) as preparation:
        return preparation.result()


class Preparation:
    """Make the missing blocks in a thread of this process, so that training starts on the first of them.

    As a context manager it stops making blocks when the training inside has ended and needs no more of them.
    """

    def __init__(self, packing: Packing, cluster: Cluster, *, log: Callable[[str], None] = print) -> None:
        self.folder = packing.folder
        shards.write_plan(self.folder, packing.plan, packing.sources)
        paths.remove(paths.join(self.folder, shards.FAILED_FILE))
        present = shards.rows_by_block(paths.names(self.folder))
        self._missing = [block for block in range(packing.plan.num_blocks) if block not in present]
        if self._missing and cluster.max_workers > 0:
            cluster.connect()
        self._packing, self._cluster, self._log = packing, cluster, log
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prepare", daemon=True)
        self._thread.start()

    def result(self) -> str:
        """Wait until every block is there and return the folder.

        Raises:
            RuntimeError: a block could not be made; holds the cause.
            ValueError: the documents fill no row.
        """
        self._thread.join()
        if (error := self._error) is not None:
            raise RuntimeError(f"the tokens in {self.folder} could not be made: {_described(error)}") from error
        if not sum(shards.rows_by_block(names := paths.names(self.folder)).values()):
            raise ValueError(_without_rows(self._packing, shards.counts(names)))
        return self.folder

    def __enter__(self) -> "Preparation":
        return self

    def __exit__(self, *_: object) -> None:
        """Make no more blocks. Finished ones stay, and a later preparation makes the rest."""
        self._stopping.set()
        self._thread.join(timeout=5.0)  # the block being made may take longer; nothing waits for it

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
        name = paths.name(self.folder)
        self._log(f"{name}: making {len(self._missing)} of {self._packing.plan.num_blocks} blocks")
        make = _on_the_cluster if self._cluster.max_workers else _in_this_process
        started, total = time.monotonic(), BlockCounts(0, 0, 0, 0)
        progress = Progress(name, len(self._missing), unit="block", log=self._log)
        for done, counts in enumerate(make(self._packing, self._missing, self._cluster), start=1):
            total = BlockCounts(*map(sum, zip(total, counts, strict=True)))
            tok_per_s = total.used / (time.monotonic() - started)
            lost = f"{total.lost_frac:.2%}"
            progress.advance(done, rows=total.rows, tokens=total.used, lost=lost, tok_per_s=tok_per_s)
            if self._stopping.is_set():
                return


def _without_rows(packing: Packing, counts: BlockCounts | None) -> str:
    """Say what a folder without rows was made from, and what to do."""
    first, *others = packing.sources or [packing.folder]
    where = f"{first} and {len(others):,} more" if others else first
    got = f"{counts.documents:,} documents of {counts.used + counts.lost:,} tokens" if counts else "the documents"
    return (
        f"{where}: {got} fill no row of {packing.plan.sequence_len + 1:,} tokens; give more text, or a shorter "
        "--sequence-len (the last shard of a corpus is for validation, and a part of every task)"
    )


def _in_this_process(packing: Packing, missing: Sequence[int], _: Cluster) -> Iterator[BlockCounts]:
    """Make the blocks one by one; yield what each holds."""
    for block in missing:
        yield make_block(packing.folder, block, packing.pack, packing.read(packing.blocks[block]))


def _on_the_cluster(packing: Packing, missing: Sequence[int], cluster: Cluster) -> Iterator[BlockCounts]:
    """Stream the blocks through Ray Data, the first ones first; yield what each holds as it is done.

    Reading waits for disks and networks, so its tasks run ahead of those that tokenize, pack and write. Each task gets
    the inputs of its own block only, and only counts come back here.
    """
    folder, read, pack = packing.folder, packing.read, packing.pack

    blocks = [{"block": block, "value": cloudpickle.dumps(packing.blocks[block])} for block in missing]
    data: ray.data.Dataset = ray.data.from_items(blocks, override_num_blocks=len(blocks))
    data.context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its start, its plan, its end; errors are raised
    # A task that waits for a CPU which training holds, while training waits for its block, would wait forever.
    cpus = 1.0 if ray.cluster_resources().get("CPU", 1) >= cluster.max_workers + 2 else 0.0
    tasks = ray.data.TaskPoolStrategy(size=num_cores(cluster))
    data = data.map(_on_row(lambda _, block: read(block)), num_cpus=cpus / 4, compute=tasks)
    make = _on_row(lambda block, documents: _make_where_seen(folder, block, pack, documents))
    data = data.map(make, num_cpus=cpus, compute=tasks)
    for row in data.iter_rows():
        made = cloudpickle.loads(row["value"])
        if isinstance(made, _TaskFailed):
            raise made
        yield made


def _make_where_seen(folder: str, block: int, pack: Callable[[Any], Packed], documents: Any) -> BlockCounts:
    """Make a block on a node that sees the folder's plan. Raises ValueError on another one, which may have joined late.

    Its block would be seen by nobody, and all would wait for it.
    """
    if not paths.exists(plan := paths.join(folder, shards.PLAN_FILE)):
        raise ValueError(
            f"the node {ray.util.get_node_ip_address()} does not see {plan}; set --cluster.storage-path to a folder or "
            "bucket that all nodes share"
        )
    return make_block(folder, block, pack, documents)


def _on_row(step: Callable[[int, Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what replaces a row's value by `step(block, value)`.

    An error becomes the value, which later steps pass on: of an error that is raised, Ray Data loses type and cause.
    """

    def replace(row: dict[str, Any]) -> dict[str, Any]:
        value = cloudpickle.loads(row["value"])
        if not isinstance(value, _TaskFailed):
            try:
                value = step(row["block"], value)
            except Exception as error:
                value = _TaskFailed(_described(error))
                value.add_note(traceback.format_exc())
        return {"block": row["block"], "value": cloudpickle.dumps(value)}

    return replace


class _TaskFailed(Exception):
    """The error of a task as text, which any process can unpickle: its type and message, its traceback as a note."""


def _described(error: BaseException) -> str:
    return str(error) if isinstance(error, _TaskFailed) else f"{type(error).__name__}: {error}"
