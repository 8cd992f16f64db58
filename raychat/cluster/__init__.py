"""Everything that knows Ray. This module itself is light: jobs import `Cluster` to show their `--help`."""

from dataclasses import dataclass

from raychat import paths


@dataclass(frozen=True)
class Cluster:
    """Where and how wide a job runs."""

    workers: int = 1  # data-parallel train workers; 0 = in this process, without Ray
    storage_path: str | None = None  # folder or URL (s3://, gs://) for what is written; None = RAYCHAT_HOME
    address: str | None = None  # Ray cluster to join; None = RAY_ADDRESS if set, else one started on this machine
    gpus_per_worker: int | None = None  # None = 1 where the cluster has GPUs, else 0
    max_failures: int = 3  # restarts of a stage's workers, or deaths of actors in a row, before the job gives up

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"--cluster.workers is {self.workers}; expected 0 (in this process) or more")

    def storage(self) -> str:
        """Return the absolute root of the storage; workers get paths below it and never look at the environment."""
        return paths.absolute(self.storage_path or paths.home())

    def run_folder(self, run: str, *names: str) -> str:
        """Return a path below the folder of the run named `run`."""
        return paths.join(self.storage(), "runs", run, *names)
