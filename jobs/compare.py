"""Put runs, or series of runs, beside each other: figures with their differences to the first one, curves, settings.

    python jobs/compare.py tiny other                   two runs, or more
    python jobs/compare.py mini slow                    two series of jobs/miniseries.py: a compute multiplier

Prints the tables, and writes compare.md and compare.html to compare/<names> of the storage.
"""

from dataclasses import dataclass, field
from typing import Any

from tyro.conf import Positional

from raychat import paths
from raychat.cluster import Cluster
from raychat.settings import at_least


@dataclass(frozen=True)
class Args:
    runs: Positional[tuple[str, ...]]  # names of two or more runs, or of two or more series; the first is compared to
    price_per_hour: float | None = None  # US dollars for all machines together; None = list price where the GPU has one
    cluster: Cluster = field(default_factory=Cluster)  # its storage

    def __post_init__(self) -> None:
        at_least(self, price_per_hour=0)
        if len(set(self.runs)) < 2 or len(set(self.runs)) < len(self.runs):
            raise ValueError(f"expected two different runs or more to compare, got {' '.join(self.runs) or 'none'}")


def run(args: Args) -> list[Any]:
    """Compare the runs; return the sections that were written.

    Raises:
        ValueError: a run has no stage, or some of the names are series and others are not.
    """
    from raychat import report
    from raychat.lab import findings, series
    from raychat.report import compare
    from raychat.report.blocks import Table
    from raychat.report.figures import collect
    from raychat.report.markdown import table_text

    storage = args.cluster.storage()
    are_series = [series.exists(storage, name) for name in args.runs]
    if any(are_series) and not all(are_series):
        alone = [name for name, is_series in zip(args.runs, are_series, strict=True) if not is_series]
        raise ValueError(f"{', '.join(alone)}: no series of jobs/miniseries.py; a series is compared to series only")
    if all(are_series):
        first, *others = [series.load(storage, name) for name in args.runs]
        sections = findings.comparison(first, others)
    else:
        folders = [args.cluster.run_folder(name) for name in args.runs]
        found = [compare.Compared(*collect(folder, args.price_per_hour)) for folder in folders]
        sections = compare.sections(found)
    folder = paths.join(storage, "compare", "-".join(args.runs))
    report.write_files(folder, "compare", " and ".join(args.runs), f"Differences are to {args.runs[0]}.", sections)
    tables = [block for section in sections for block in section.blocks if isinstance(block, Table)]
    print("\n\n".join(map(table_text, tables)))
    print(f"\ncompared: {paths.join(folder, 'compare.html')}")
    return sections


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))
