"""The report card shows the figures in the stages' files, and "-" where they have none."""

import html.parser
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from jobs import report as job
from raychat import paths, report
from raychat.cluster import Cluster
from raychat.report import card, curves, figures, tables

H100 = "NVIDIA H100 80GB HBM3"
EVIL = "<script>alert(1)</script> | *bold* & \n\n# no heading"


def write_stage(
    folder: str, summary: dict[str, Any] | None, evaluation: dict[str, Any] | None, rows: list[dict[str, Any]]
) -> None:
    paths.write_text(paths.join(folder, "metrics.jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
    if summary is not None:
        paths.write_json(paths.join(folder, "summary.json"), summary)
    if evaluation is not None:
        paths.write_json(paths.join(folder, "eval.json"), evaluation)


def write_run(run: str) -> None:
    """Write the files of a whole run: tokenizer, base, SFT and RL; mid was not run."""
    tokenizer = paths.join(run, "tokenizer")
    paths.write_json(
        paths.join(tokenizer, "train.json"),
        {"vocab_size": 512, "characters": 1_000_000, "documents": 700, "wall_s": 2.5, "fingerprint": "abc"},
    )
    rates = {"news": {"bytes_per_token": {"tiny": 3.25, "gpt2": 4.5}}, "code": {"bytes_per_token": {"tiny": 2.0}}}
    paths.write_json(paths.join(tokenizer, "eval.json"), {"texts": rates})

    loss = [{"step": s, "loss": 6 * math.exp(-s / 60) + 2, "tok_per_s": 900.0 + s, "t": s * 1.0} for s in range(1, 201)]
    loss += [{"step": s, "val_bpb": 3.0 - s / 200, "val_core": s / 500, "t": s * 1.0} for s in (100, 200)]
    base = {"steps": 200, "tokens": 819200, "wall_s": 1800.0, "workers": 8, "device": H100, "num_params": 123456}
    base |= {"val_bpb": 2.0, "unigram_bpb": 4.0, "settings": {"depth": 2}}
    core_tasks = {"copying": {"accuracy": 0.75, "centred": 0.5, "num_items": 40}}
    samples = [{"prompt": "Once upon", "text": " a time"}]
    write_stage(
        paths.join(run, "base"),
        base,
        {"wall_s": 600.0, "core": 0.5, "core_tasks": core_tasks, "samples": samples},
        loss,
    )
    paths.write_json(paths.join(run, "base", "step_000200", "meta.json"), {"model": {"n_layer": 2, "n_embd": 128}})

    chat = {
        "wall_s": 60.0,
        "accuracy": {"arc-easy": 0.625, "gsm8k": 0.125},
        "chance": {"arc-easy": 0.25, "gsm8k": 0.0},
        "num_problems": {"arc-easy": 80, "gsm8k": 80},
        "chatcore": 0.3125,
        "answers": [{"task": "arc-easy", "question": "Pick one", "reward": 1.0, "text": "B"}],
        "samples": [{"prompt": "Hello?", "text": EVIL}],
    }
    sft = {"steps": 50, "wall_s": 120.0, "val_bpb": 1.5, "unigram_bpb": 3.5, "workers": 8, "device": H100}
    write_stage(paths.join(run, "sft"), sft, chat, [{"step": s, "loss": 2.0 - s / 100} for s in range(1, 51)])

    rl = {"steps": 20, "wall_s": 240.0, "workers": 8, "device": H100, "reward_first": 0.1, "reward_last": 0.4}
    rl["samples"] = [{"question": "2 + 2?", "answer": "#### 4", "reward": 1.0}]
    reward = [{"step": s, "loss": 0.0, "reward": s / 50} for s in range(1, 21)] + [{"step": 20, "val_reward": 0.3}]
    write_stage(paths.join(run, "rl"), rl, None, reward)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run with its report written."""
    folder = str(tmp_path_factory.mktemp("report") / "runs" / "demo")
    write_run(folder)
    report.write(folder)
    return folder


def file(run: str, name: str) -> str:
    return paths.read_text(paths.join(run, "report", name))


def cells(written: dict[str, Any], title: str) -> dict[str, list[str]]:
    (table,) = [table for table in tables.tables_of(written) if table.title == title]
    return {row[0]: row[1:] for row in table.rows}


class Page(html.parser.HTMLParser):
    """Collects tags and attributes, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def test_json_holds_what_the_stages_measured(run: str) -> None:
    written = json.loads(file(run, "report.json"))
    stages = written["stages"]
    assert list(stages) == ["base", "sft", "rl"]
    base = {key: stages["base"][key] for key in ("val_bpb", "unigram_bpb", "wall_s", "core", "copying", "steps")}
    assert base == {"val_bpb": 2.0, "unigram_bpb": 4.0, "wall_s": 1800.0, "core": 0.5, "copying": 0.75, "steps": 200}
    assert {k: stages["sft"][k] for k in ("arc_easy", "gsm8k", "chatcore")} == {
        "arc_easy": 0.625,
        "gsm8k": 0.125,
        "chatcore": 0.3125,
    }
    assert (stages["rl"]["reward_first"], stages["rl"]["reward_last"]) == (0.1, 0.4)
    assert written["run"] == "demo"
    assert written["model"] == {"n_layer": 2, "n_embd": 128}
    assert written["tokenizer"]["vocab_size"] == 512


def test_nothing_is_made_up(run: str) -> None:
    """What a stage did not measure is null, in every stage that was run."""
    stages = json.loads(file(run, "report.json"))["stages"]
    assert all(key in stage for key in figures.ALWAYS for stage in stages.values())
    assert stages["rl"]["val_bpb"] is stages["rl"]["unigram_bpb"] is stages["base"]["reward_first"] is None
    assert stages["sft"]["core"] is stages["base"]["chatcore"] is stages["rl"]["eval_wall_s"] is None


def test_results_table(run: str) -> None:
    rows = cells(json.loads(file(run, "report.json")), "Results")
    assert rows == {
        "val bpb": ["2.0000", "-", "1.5000", "-"],
        "unigram bpb": ["4.0000", "-", "3.5000", "-"],
        "CORE": ["0.5000", "-", "-", "-"],
        "ARC-Easy": ["-", "-", "0.6250", "-"],
        "GSM8K": ["-", "-", "0.1250", "-"],
        "ChatCORE": ["-", "-", "0.3125", "-"],
        "mean reward, first steps": ["-", "-", "-", "0.1000"],
        "mean reward, last steps": ["-", "-", "-", "0.4000"],
    }


def test_cost_at_given_and_at_list_price(run: str) -> None:
    given, _ = figures.collect(run, price_per_hour=12.0)
    assert given["stages"]["base"]["cost"] == pytest.approx(2400 / 3600 * 12)
    assert given["total"]["cost"] == pytest.approx((2400 + 180 + 240) / 3600 * 12)
    listed, _ = figures.collect(run)
    assert listed["stages"]["rl"]["cost"] == pytest.approx(240 / 3600 * 8 * 3.0)
    assert cells(listed, "Time and cost")["BASE"][-1] == "$16.00"


def test_without_a_price_there_is_no_cost(tmp_path: Path) -> None:
    write_run(run := str(tmp_path / "demo"))
    path = paths.join(run, "base", "summary.json")
    paths.write_json(path, paths.read_json(path) | {"device": "cpu"})
    written, _ = figures.collect(run)
    assert written["stages"]["base"]["cost"] is written["total"]["cost"] is None
    assert cells(written, "Time and cost")["BASE"][-1] == cells(written, "Time and cost")["total"][-1] == "-"


def test_page_is_whole_and_needs_nothing_else(run: str) -> None:
    text = file(run, "report.html")
    page = Page(text)
    assert "script" not in [tag for tag, _ in page.seen]
    assert EVIL in page.text
    assert not [key for _, attrs in page.seen for key in ("src", "href") if key in attrs]
    assert "url(" not in text
    assert [tag for tag, _ in page.seen].count("svg") == 2  # for a desk and for a phone
    for expected in ("0.6250", "50% below unigram", "0.10 → 0.40", "Once upon", "#### 4"):
        assert expected in page.text


def test_conversation_comes_first(run: str) -> None:
    page = Page(file(run, "report.html"))
    assert page.text.index("Hello?") < page.text.index("In short") < page.text.index("Curves")


def test_picture_shows_the_curves(run: str) -> None:
    found = "".join(ET.fromstring(file(run, "curves.svg")).itertext())
    for words in (
        "BASE",
        "SFT",
        "RL",
        curves.LOSS,
        curves.BPB,
        curves.SCORES,
        curves.CORE,
        curves.REWARD,
        "30 min 00 s",
        "36 min",
    ):
        assert words in found, words
    assert "MID" not in found


def test_stages_follow_each_other_on_one_time_line() -> None:
    bands = curves._bands({"base": 1000.0, "sft": 1.0, "rl": 200.0})
    assert bands["base"][0] == 0.0
    assert bands["rl"][1] == pytest.approx(1.0)
    assert bands["base"][1] == bands["sft"][0]
    sizes = {name: stop - start for name, (start, stop) in bands.items()}
    assert sizes["base"] > sizes["rl"] > sizes["sft"] > 0.1  # also what took a second can be seen
    series = [{"step": 1, "val_bpb": 3.0, "t": 250.0}, {"step": 2, "val_bpb": 2.0, "t": 1000.0}]
    placed = curves._placed(series, {"wall_s": 1000.0}, (0.0, 0.5), "val_bpb")
    assert placed == [(0.125, 3.0), (0.5, 2.0)]


def test_intervals_and_guards_of_newer_evaluations(tmp_path: Path) -> None:
    run = str(tmp_path / "r")
    write_run(run)
    path = paths.join(run, "sft", "eval.json")
    newer = {"interval": {"gsm8k": [0.0625, 0.21], "chatcore": [0.2, 0.4]}, "guards": {"humaneval": ["seccomp"]}}
    newer["interval"] |= {"gsm8k pass@8": [0.375, 0.6]}
    newer |= {"seconds": {"arc-easy": 1.5, "gsm8k, humaneval": 75.0}}
    newer |= {"pass_at_k": {"gsm8k": {"1": 0.125, "8": 0.5}}, "outcomes": {"gsm8k": [0.0] * 7 + [1.0]}}
    newer |= {"contamination": {"gsm8k": {"checked": 80, "hits": 3, "share": 0.0375, "clean_accuracy": 0.1}}}
    newer["contamination"]["gsm8k"] |= {"interval": {"clean_accuracy": [0.05, 0.16]}}
    paths.write_json(path, paths.read_json(path) | newer)
    written = report.write(run)
    rows = cells(written, "Results")
    assert rows["GSM8K"] == ["-", "-", "0.1250 [0.06, 0.21]", "-"]
    assert rows["GSM8K, pass@8"] == ["-", "-", "0.5000 [0.38, 0.60]", "-"]
    assert "GSM8K, pass@1" not in rows
    assert cells(written, "Items in the training text") == {"GSM8K": ["SFT", "3 of 80", "0.1000 [0.05, 0.16]"]}
    times = {"ARC-Easy": ["SFT", "1.5 s"], "GSM8K, HumanEval": ["SFT", "1 min 15 s"]}
    assert cells(written, "Time of evaluations") == times
    assert "<small>[0.06, 0.21]</small>" in file(run, "report.html")
    assert "ran under seccomp" in file(run, "report.md")


def test_base_stands_beside_the_chat_stages_where_it_answered_the_same_questions(tmp_path: Path) -> None:
    write_run(run := str(tmp_path / "r"))
    asked = {"prompt": "Question: Who?\nAnswer:", "question": "Who?"}
    of_base = [{"prompt": "Once", "text": " upon"}, asked | {"text": " Me."}]
    write_stage(paths.join(run, "base"), None, {"samples": of_base}, [])
    for stage in ("mid", "sft", "rl"):
        of_stage = [{"prompt": "Who?", "text": f"I am {stage}."}]
        write_stage(paths.join(run, stage), None, {"samples": of_stage}, [])
    found = report.figures.collect(run)[0]["samples"]
    ((question, _, answers),) = card._side_by_side(found, "texts")[0].rows
    assert question == "Who?"
    assert [(answer.model, answer.text) for answer in answers] == [
        ("BASE", " Me."), ("MID", "I am mid."), ("SFT", "I am sft."), ("RL", "I am rl.")
    ]  # fmt: skip
    assert [row[0] for row in card._continuations(found)[0].rows] == ["Once"]


def test_every_task_of_core_has_its_interval_and_its_time(tmp_path: Path) -> None:
    write_run(run := str(tmp_path / "r"))
    path = paths.join(run, "base", "eval.json")
    newer = {"interval": {"copying": [0.5, 0.9]}, "seconds": {"copying": 2.25}}
    paths.write_json(path, paths.read_json(path) | newer)
    rows = cells(report.write(run), "CORE by task")
    assert rows == {"copying": ["BASE", "0.7500 [0.50, 0.90]", "+0.5000", "40", "2.2 s"]}


def test_intervals_of_what_a_stage_measures_itself(tmp_path: Path) -> None:
    write_run(run := str(tmp_path / "r"))
    path = paths.join(run, "rl", "summary.json")
    newer = {"val_reward": 0.5, "interval": {"reward_last": [0.25, 0.75], "val_reward": [0.3, 0.7]}}
    paths.write_json(path, paths.read_json(path) | newer)
    rows = cells(report.write(run), "Results")
    assert rows["mean reward, last steps"][-1].endswith(" [0.25, 0.75]")
    assert rows["reward of held-out problems"] == ["-", "-", "-", "0.5000 [0.30, 0.70]"]


def test_markdown_keeps_texts_of_the_model_from_being_markup(run: str) -> None:
    text = file(run, "report.md")
    assert "| ARC-Easy | - | - | 0.6250 | - |" in text
    assert re.findall(r"^#+ (.*)$", text, re.MULTILINE)[:3] == ["demo: report card", "A conversation", "In short"]
    assert not re.search(r"^# no heading", text, re.MULTILINE)
    assert "![curves](curves.svg)" in text
    for name in re.findall(r"\]\((.*?)\)", text):
        assert paths.exists(paths.join(run, "report", name))


@pytest.mark.parametrize("text", ["~~~\n![a](http://a.org/a.png)", "a\r![a](http://a.org/a.png)", "~~~~\n<b>a</b>", ""])
def test_no_text_of_the_model_leaves_its_fence(tmp_path: Path, text: str) -> None:
    write_stage(str(tmp_path / "r" / "base"), None, {"samples": [{"prompt": text, "text": text}]}, [])
    report.write(str(tmp_path / "r"))
    page = Page(file(str(tmp_path / "r"), "report.html"))
    assert not {"img", "a", "b"} & {tag for tag, _ in page.seen}
    assert page.text.count(text) >= 2
    rendered = MarkdownIt("js-default").render(file(str(tmp_path / "r"), "report.md"))
    assert not {"a", "b"} & {tag for tag, _ in Page(rendered).seen}


@pytest.mark.parametrize(
    "recorded",
    [
        {"settings": {"depth": 2, "workers": 8}},
        {"recipe": {"depth": 2}, "runtime": {"workers": 8}},
        {"recipe": {"depth": 2}, "runtime": {"workers": 8}, "settings": {"depth": 9}},
    ],
    ids=["settings", "recipe and runtime", "all"],
)
def test_settings_of_either_layout(tmp_path: Path, recorded: dict[str, Any]) -> None:
    """Older code recorded `settings`; newer code records `recipe` and `runtime`."""
    write_stage(str(tmp_path / "r" / "base"), {"steps": 1, **recorded}, None, [{"step": 1, "loss": 2.0}])
    written, _ = figures.collect(str(tmp_path / "r"))
    assert written["stages"]["base"]["settings"] == {"depth": 2, "workers": 8}


@pytest.mark.parametrize("meta", [{"model": {"n_layer": 3}}, {"recipe": {"model": {"n_layer": 3}}, "runtime": {}}])
def test_model_of_either_layout(tmp_path: Path, meta: dict[str, Any]) -> None:
    """A checkpoint holds the model's fields in its recipe; those of older code beside it."""
    stage = str(tmp_path / "r" / "base")
    write_stage(stage, {"steps": 1}, None, [])
    paths.write_json(paths.join(stage, "step_000001", "meta.json"), meta)
    written, _ = figures.collect(str(tmp_path / "r"))
    assert written["model"] == {"n_layer": 3}


def test_unfinished_stage_shows_its_metrics(tmp_path: Path) -> None:
    rows = [{"step": s, "loss": 2.0, "t": s * 0.5} for s in range(1, 8)]
    write_stage(str(tmp_path / "r" / "base"), None, None, rows)
    written, _ = figures.collect(str(tmp_path / "r"))
    assert written["stages"]["base"]["wall_s"] == 3.5
    assert written["stages"]["base"]["val_bpb"] is None
    assert cells(written, "Time and cost")["BASE (unfinished)"][0] == "7"
    assert written["model"] is written["tokenizer"] is None


def test_run_without_stages_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing to report: .* none of the stages base, mid, sft, rl"):
        report.write(str(tmp_path / "empty"))


def test_object_store() -> None:
    run = "memory://report-test/runs/demo"
    write_run(run)
    report.write(run)
    assert paths.names(paths.join(run, "report")) == [
        "curves.svg",
        "report.html",
        "report.json",
        "report.md",
    ]


def test_job_prints_the_table(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    storage = str(Path(run).parent.parent)
    written = job.run(job.Args(run="demo", cluster=Cluster(workers=0, storage_path=storage)))
    assert written["run"] == "demo"
    printed = capsys.readouterr().out
    assert "| ChatCORE | - | - | 0.3125 | - |" in printed
    assert printed.rstrip().endswith("runs/demo/report/report.html")


def test_durations_read_naturally() -> None:
    assert [tables.duration(s) for s in (0.0, 59.94, 60, 3599.6, 3600, 86400)] == [
        "0.0 s",
        "59.9 s",
        "1 min 00 s",
        "1 h 00 min",
        "1 h 00 min",
        "24 h 00 min",
    ]
