"""Everything that knows Ray. Jobs import `Cluster` for their `--help`, so this module imports Ray when it is used."""

import logging
import os
from dataclasses import dataclass

from raychat import paths
from raychat.settings import at_least

# Defaults that suit small machines; the user's own settings win. See Ray's constants of these names.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # how soon the controller sees a dead worker; Ray's is 2 s
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # Ray forwards workers' prints anyway: once is enough
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # how long room is awaited on nodes that may be gone by now
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Freed tensors stay in the process, also those of the thread that trains: see device.py
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
    # The same on GPUs: segments grow, so that free memory is not cut up by blocks of many sizes
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}
# The driver's variables that a cluster gets as well; the last three open buckets
_FORWARDED = tuple("RAYCHAT_DTYPE WANDB_ HF_ RAY_TRAIN_ NCCL_ TORCH_ PYTORCH_ MALLOC_ AWS_ FSSPEC_ GOOGLE_".split())
_LOGICAL_CPUS = 8  # at least, on one's own machine: actors mostly wait, and a small laptop must not deadlock


@dataclass(frozen=True)
class Cluster:
    """Where and how wide a job runs."""

    workers: int | str = 1  # data-parallel; 2:8 = from 2 to 8, as many as have room; 0 = in this process, without Ray
    storage_path: str | None = None  # folder or URL (s3://, gs://) for what is written; None = RAYCHAT_HOME
    address: str | None = None  # Ray cluster to join; None = RAY_ADDRESS if set, else one started on this machine
    gpus_per_worker: int | None = None  # GPUs of each worker; None = 1 where the cluster has GPUs, else 0
    max_failures: int = 3  # failures of workers or actors in a row, without progress, before the job gives up
    max_wait_s: float = 3600  # for room for the workers, before the job gives up

    def __post_init__(self) -> None:
        at_least(self, flags="--cluster.", gpus_per_worker=0, max_failures=0, max_wait_s=0)
        self._range()

    @property
    def min_workers(self) -> int:
        """The fewest train workers; a stage waits for room for them."""
        return self._range()[0]

    @property
    def max_workers(self) -> int:
        """The most train workers; 0 = in this process."""
        return self._range()[1]

    def _range(self) -> tuple[int, int]:
        parts = str(self.workers).split(":")
        if len(parts) <= 2 and all(part.isdecimal() for part in parts):
            least, most = int(parts[0]), int(parts[-1])
            if 0 < least <= most or least == most == 0:
                return least, most
        raise ValueError(
            f"--cluster.workers is {self.workers}; expected a number, 0 (in this process), or a range such as 2:8"
        )

    def storage(self) -> str:
        """Return the absolute root of the storage; workers get paths below it and never look at the environment."""
        return paths.absolute(self.storage_path or paths.home())

    def run_folder(self, run: str, *names: str) -> str:
        """Return a path below the folder of the run named `run`."""
        return paths.join(self.storage(), "runs", run, *names)

    def connect(self) -> None:
        """Join a cluster whose nodes share the storage, or start one on this machine; once per process.

        Raises:
            ValueError: some nodes do not see what is written to the storage.
        """
        if self.join():
            from raychat.cluster.nodes import check_nodes

            check_nodes(self.storage())

    def join(self) -> bool:
        """Join the Ray cluster at `address` or RAY_ADDRESS, or start one on this machine; False if done before."""
        import ray

        if ray.is_initialized():
            return False
        for key, value in _ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        address = self.address or os.environ.get("RAY_ADDRESS")
        if address and address != "local":
            forwarded = {k: v for k, v in os.environ.items() if k.startswith(_FORWARDED)}
            ray.init(address=address, runtime_env={"env_vars": forwarded})
            return True
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
        # Processes inherit this one's variables. With a runtime environment each would import Ray twice.
        cpus, level = max(_LOGICAL_CPUS, os.cpu_count() or 1), logging.WARNING
        # Ray Train asks the dashboard about its own actors, and people like to look at it
        ray.init("local", num_cpus=cpus, include_dashboard=True, logging_level=level)
        return True

    def gpus(self) -> int:
        """Return the GPUs of each worker or actor: `gpus_per_worker`, else 1 where there are GPUs, else 0."""
        return self.gpus_per_worker if self.gpus_per_worker is not None else min(1, num_gpus())


def num_gpus() -> int:
    """Return the GPUs of the Ray cluster, or of this machine while it has joined none."""
    import ray

    if ray.is_initialized():
        return int(ray.cluster_resources().get("GPU", 0))
    import torch

    return torch.cuda.device_count()
