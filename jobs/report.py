"""Write the report card of a run: report.md, report.html and report.json in runs/<run>/report/."""

from dataclasses import dataclass, field
from typing import Any

from raychat import paths
from raychat.cluster import Cluster
from raychat.settings import at_least


@dataclass(frozen=True)
class Args:
    """Put together what the stages of a run have measured; stages that are not there are left out."""

    run: str = "tiny"  # name of the run
    price_per_hour: float | None = None  # US dollars for all machines together; None = list price where the GPU has one
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        at_least(self, price_per_hour=0)


def run(args: Args) -> dict[str, Any]:
    """Write the report anew; return what report.json says. Raises ValueError when the run has no stage."""
    from raychat import report
    from raychat.report.markdown import table_text
    from raychat.report.tables import tables_of

    folder = args.cluster.run_folder(args.run)
    written = report.write(folder, price_per_hour=args.price_per_hour)
    print(table_text(tables_of(written)[0]))
    print(f"\nreport: {paths.join(folder, 'report', 'report.html')}")
    return written


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))
