"""Write the report card of a run: report.md, report.html and report.json in runs/<run>/report/.

python jobs/report.py --run tiny
python jobs/report.py --run tiny --serve     a page that follows the run while it trains, on this machine only
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any

from raychat import paths
from raychat.cluster import Cluster
from raychat.settings import at_least, at_most


@dataclass(frozen=True)
class Args:
    """Put together what the stages of a run have measured; stages that are not there are left out."""

    run: str = "tiny"  # name of the run
    price_per_hour: float | None = None  # US dollars for all machines together; None = list price where the GPU has one
    serve: bool = False  # show the report card at a local address and keep it up to date, until Ctrl-C; write nothing
    port: int = 8100  # of that address; 0 = any that is free
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        at_least(self, price_per_hour=0, port=0)
        at_most(self, port=65535)


def run(args: Args) -> dict[str, Any]:
    """Write the report anew, or follow the run; return what report.json says. Raises ValueError without a stage."""
    if args.serve:
        follow(args)
        return {}

    from raychat import report
    from raychat.report.markdown import table_text
    from raychat.report.tables import tables_of

    folder = args.cluster.run_folder(args.run)
    written = report.write(folder, price_per_hour=args.price_per_hour)
    print(table_text(tables_of(written)[0]))
    print(f"\nreport: {paths.join(folder, 'report', 'report.html')}")
    return written


def follow(args: Args) -> None:
    """Serve the report card of a run, also of one that has not begun yet, until Ctrl-C."""
    from raychat import paths
    from raychat.report.live import Follower, server_of

    folder = args.cluster.run_folder(args.run)
    with server_of(Follower(folder, price_per_hour=args.price_per_hour), args.port) as server:
        waits = "" if paths.names(folder) else f"; it does not exist yet, the page waits for {folder}"
        print(f"report of {args.run}: http://{server.server_address[0]!s}:{server.server_port}{waits}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))
