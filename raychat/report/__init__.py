"""The report card of a run, collected from what its stages wrote to the storage.

    runs/<run>/report/report.json     all figures; `stages.<stage>.<figure>`
    runs/<run>/report/report.md       tables and samples, with the curves beside it as .svg
    runs/<run>/report/report.html     the same as one self-contained page

It reads `{base,mid,sft,rl}/{metrics.jsonl,summary.json,eval.json}` and the tokenizer's figures. What a stage did not
measure is `null` in report.json and "-" in the tables.
"""

from typing import Any

from raychat import paths
from raychat.report.curves import pictures_of
from raychat.report.figures import collect
from raychat.report.markdown import document, page


def write(run_folder: str, *, price_per_hour: float | None = None) -> dict[str, Any]:
    """Write a run's report into its folder and return the content of report.json; arguments as in `collect`."""
    report, rows = collect(run_folder, price_per_hour)
    pictures = pictures_of(rows, report["stages"])
    text = document(report, pictures)
    folder = paths.join(run_folder, "report")
    for name, svg in pictures.items():
        paths.write_text(paths.join(folder, f"{name}.svg"), svg)
    paths.write_text(paths.join(folder, "report.md"), text)
    paths.write_text(paths.join(folder, "report.html"), page(report["run"], text, pictures))
    paths.write_json(paths.join(folder, "report.json"), report)  # last: it marks the report as complete
    return report
