"""A driver that trains toy stages: `python elastic_driver.py SCENARIO ROOT`, where RAY_ADDRESS names a cluster.

It is a process of its own, since the process of the tests has joined another cluster.
"""

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import ray
import toy
from tiny import byte_tokenizer

from jobs import tok_train
from raychat import paths
from raychat.cluster import Cluster, workers
from raychat.cluster.launch import launch
from raychat.cluster.prepare import prepare
from raychat.data.batches import Step
from raychat.data.pack import pretraining
from raychat.recipe import Runtime
from raychat.train.stage import Feed, Learner, Stage

STEPS = 120


def paced(learner: Learner, *, source: Callable[[Learner], Feed]) -> Feed:
    """Note who opens the feed, and take up to 2 s for every step until there is a file `<stage>-go`."""
    from raychat import dist

    rank, size = dist.world()
    folder, node = learner.stage.folder, ray.get_runtime_context().get_node_id()
    feed = source(learner)

    def steps(start: int) -> Iterator[Step]:
        with open(f"{folder}-opened", "a") as opened:
            opened.write(f"{size} {rank} {start} {node}\n")
        for step in whole(start):
            end = time.monotonic() + 2
            while time.monotonic() < end and not os.path.exists(f"{folder}-go"):
                time.sleep(0.05)
            yield step

    whole, feed.steps = feed.steps, steps  # type: ignore[method-assign]
    return feed


def stage(root: Path, name: str, *, pace: bool = False) -> Stage:
    """The toy stage, with more steps and without checkpoints in between."""
    made = toy.token_stage(root, name, Runtime(device_rows=4))
    assert made.source is not None
    source = functools.partial(paced, source=made.source) if pace else made.source
    return replace(made, steps=STEPS, source=source)


class SeenFromItsNode(Stage):
    """A stage whose folder is on the disk of the node that looks, as without a shared storage."""

    @property
    def folder(self) -> str:
        return os.environ.get("DISK_OF_THE_NODE", "") + super().folder


def elastic(root: Path) -> None:
    """One to two workers."""
    cluster = Cluster(workers="1:2", storage_path=str(root), max_failures=1)
    launch(stage(root, "elastic", pace=True), cluster)


def fixed(root: Path) -> None:
    """Two workers, undisturbed, then with a notice in the middle."""
    cluster = Cluster(workers=2, storage_path=str(root), max_failures=0)
    with workers.shared_workers(cluster):
        launch(stage(root, "undisturbed"), cluster)
        launch(stage(root, "drained", pace=True), cluster)


def submitted(root: Path) -> None:
    """One worker."""
    launch(stage(root, "submitted", pace=True), Cluster(workers=1, storage_path=str(root)))


def refused(root: Path) -> None:
    """Two workers on nodes that share no disk, and more workers than will ever have room; print the errors."""
    made = stage(root, "apart")
    seen = SeenFromItsNode(**{name: getattr(made, name) for name in made.__dataclass_fields__})
    crowd = Cluster(workers="9:10", storage_path=str(root), max_wait_s=3)
    for work, cluster in ((seen, Cluster(workers=2, storage_path=str(root))), (stage(root, "crowded"), crowd)):
        try:
            launch(work, cluster)
        except ValueError as error:
            print(error)


def apart(root: Path) -> None:
    """Nodes that do not see what the driver writes, its memory: nothing is counted, nothing is tokenized."""
    storage = f"memory://{root.name}"
    cluster = Cluster(workers=2, storage_path=storage)
    for shard in range(3):
        paths.write_text(str(root / "text" / f"{shard}.txt"), "How many nodes see this? " * 100)
    data = (str(root / "text"),)
    _, packing = pretraining(data, byte_tokenizer(), toy.CONFIG.sequence_len, storage)
    for begin in (lambda: prepare(packing, cluster), lambda: tok_train.run(tok_train.Args(data=data, cluster=cluster))):
        try:
            begin()
        except ValueError as error:
            print(error)
        ray.shutdown()
    print("made:", [name for name in paths.names(packing.folder) if name.endswith(".npy")])


if __name__ == "__main__":
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules["__main__"])  # workers cannot import the tests
    workers._RESIZE_EVERY_S = 1.0
    {made.__name__: made for made in (apart, elastic, fixed, refused, submitted)}[sys.argv[1]](Path(sys.argv[2]))
