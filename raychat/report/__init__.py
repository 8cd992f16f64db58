"""The report card of a run, collected from what its stages wrote to the storage.

    runs/<run>/report/report.json     all figures; `stages.<stage>.<figure>`
    runs/<run>/report/report.md       curves, tables and samples, with the curves beside it as .svg
    runs/<run>/report/report.html     the same as one self-contained page

It reads `{base,mid,sft,rl}/{metrics.jsonl,summary.json,eval.json}` and the tokenizer's figures. What a stage did not
measure is `null` in report.json and "-" in the tables.
"""

from collections.abc import Sequence
from typing import Any

from raychat import paths
from raychat.report import card
from raychat.report.blocks import Picture, Section
from raychat.report.figures import collect
from raychat.report.markdown import document
from raychat.report.page import WIDE, page


def write(run_folder: str, *, price_per_hour: float | None = None) -> dict[str, Any]:
    """Write a run's report into its folder and return the content of report.json; arguments as in `collect`."""
    report, rows = collect(run_folder, price_per_hour)
    folder = paths.join(run_folder, "report")
    write_files(folder, "report", *card.heading(report), card.sections(report, rows))
    paths.write_json(paths.join(folder, "report.json"), report)  # last: it marks the report as complete
    return report


def write_files(folder: str, name: str, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write a report as `<name>.md` with its pictures, and as the page `<name>.html`."""
    for picture in (block for section in sections for block in section.blocks if isinstance(block, Picture)):
        paths.write_text(paths.join(folder, f"{picture.name}.svg"), picture.draw(WIDE))
    paths.write_text(paths.join(folder, f"{name}.md"), document(title, subtitle, sections))
    paths.write_text(paths.join(folder, f"{name}.html"), page(title, subtitle, sections))
