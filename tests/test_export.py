"""The job that takes models out of raychat, its model card, and uploads to a hub of this machine."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import toy
import yaml
from tiny import byte_tokenizer, first_generation, random_model

from jobs.export import Args, run
from raychat.checkpoint import save_checkpoint
from raychat.interchange.importing import import_run

TOKENIZER = byte_tokenizer()


@pytest.fixture(autouse=True)
def checkpoints(raychat_home: Path) -> Path:
    """A run whose base stage has figures, and an SFT stage of two steps."""
    folder = raychat_home / "runs" / "r"
    model = first_generation()
    save_checkpoint(str(folder / "base"), model, None, TOKENIZER, toy.meta(5, model))
    for step in (1, 2):
        save_checkpoint(str(folder / "sft"), model, None, TOKENIZER, toy.meta(step, model), keep=0)
    (folder / "base" / "summary.json").write_text(
        json.dumps({"steps": 5, "tokens": 1234567, "val_bpb": 0.8125, "recipe": {"data": ["climbmix"]}})
    )
    (folder / "sft" / "summary.json").write_text(
        json.dumps({"steps": 2, "val_bpb": 0.4375, "recipe": {"data": [], "tasks": ["gsm8k", "identity"]}})
    )
    (folder / "sft" / "eval.json").write_text(json.dumps({"accuracy": {"gsm8k": 0.3125}}))
    return folder


def card(folder: str | Path) -> tuple[dict[str, Any], str]:
    """The model card's head and text."""
    _, head, text = Path(folder, "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_model_with_its_card(tmp_path: Path) -> None:
    out = tmp_path / "exported"
    assert run(Args(str(out), run="r", stage="sft")) == str(out)
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "chat_template" in json.loads((out / "tokenizer_config.json").read_text())
    head, text = card(out)
    assert head == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["raychat"]}
    assert "# r SFT" in text
    assert "| BASE | 5 | 1,234,567 | climbmix |" in text
    assert "| SFT | 2 | - | gsm8k, identity |" in text
    assert "| val bpb | 0.8125 | - | 0.4375 | - |" in text
    assert "| GSM8K | - | - | 0.3125 | - |" in text
    assert 'AutoTokenizer.from_pretrained("exported")' in text
    assert "apply_chat_template" in text
    assert "trust_remote_code" not in text
    assert "CORE" not in text.replace("ChatCORE", "").replace("CORE and", "")  # not measured


def test_figures_of_a_later_step_are_not_those_of_an_older_one(tmp_path: Path) -> None:
    run(Args(str(tmp_path / "a"), run="r", stage="sft", step=1))
    _, text = card(tmp_path / "a")
    assert "after 1 steps" in text
    assert "0.8125" in text
    assert "0.4375" not in text


def test_a_base_model_says_nothing_of_later_stages_and_how_to_continue_texts(tmp_path: Path) -> None:
    run(Args(str(tmp_path / "a"), run="r", stage="base", license="mit"))
    head, text = card(tmp_path / "a")
    assert head["license"] == "mit"
    assert "0.8125" in text
    assert "gsm8k" not in text.lower()
    assert "Once upon a time" in text


def test_a_run_without_figures_has_a_card_without_tables(tmp_path: Path, raychat_home: Path) -> None:
    model = random_model()
    save_checkpoint(str(raychat_home / "runs" / "bare" / "base"), model, None, TOKENIZER, toy.meta(3, model))
    run(Args(str(tmp_path / "a"), run="bare", stage="base"))
    _, text = card(tmp_path / "a")
    assert "|" not in text
    assert "trust_remote_code=True" in text
    assert "sliding windows (`SL`" in text
    assert (tmp_path / "a" / "modeling_raychat.py").exists()


def test_a_tokenizer_for_tiktoken(tmp_path: Path) -> None:
    run(Args(str(tmp_path / "a"), run="r", stage="base", to="tiktoken"))
    first = (tmp_path / "a" / "tokenizer.tiktoken").read_text().splitlines()[7]
    assert first == f"{base64.b64encode(bytes([7])).decode()} 7"
    assert json.loads((tmp_path / "a" / "tiktoken.json").read_text())["special_tokens"] == TOKENIZER.special


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"run": "other"}, "no checkpoint of the stage sft .*other"),
        ({"step": 9}, "r-sft has no checkpoint of step 9; it has 1, 2"),
        ({"step": 0}, "step is 0; expected 1 or more"),
        ({"to": "onnx"}, "--to is 'onnx'; expected one of hf"),
        ({"out": "memory://exported", "push": "me/r"}, "a folder of this machine"),
    ],
)
def test_what_cannot_be_done_is_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(Args(**({"out": str(tmp_path / "a"), "run": "r", "stage": "sft"} | wrong)))
    assert not (tmp_path / "a").exists()


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    for path in (tmp_path / "full" / "file", tmp_path / "file"):
        path.write_text("mine")
        with pytest.raises(ValueError, match="not empty"):
            run(Args(str(tmp_path / path.relative_to(tmp_path).parts[0]), run="r", stage="sft"))
        assert path.read_text() == "mine"
    (tmp_path / "empty").mkdir()
    run(Args(str(tmp_path / "empty"), run="r", stage="sft"))
    assert (tmp_path / "empty" / "config.json").exists()


# The hub


class Hub(ThreadingHTTPServer):
    """Takes what huggingface_hub uploads, each file within its commit."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.repos: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuses = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubRequest(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        hub, body = self.server, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.refuses:
            self.answer(403, {"error": "read-only token"})
        elif self.path == "/api/repos/create":
            hub.repos.append(json.loads(body))
            self.answer(200, {"url": f"{hub.url}/me/r"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.path.startswith("/api/models/me/r/preupload/main"):
            asked = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            self.answer(200, {"files": modes})
        elif self.path.startswith("/api/models/me/r/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(200, {"commitUrl": f"{hub.url}/me/r/commit/0", "commitOid": "0" * 40})
        else:
            self.answer(404, {"error": self.path})

    def do_GET(self) -> None:
        self.answer(404, {"error": self.path})

    def answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    yield server
    server.shutdown()
    server.server_close()


def test_the_folder_is_uploaded_as_it_is(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a"
    run(Args(str(out), run="r", stage="sft", push="me/r"))
    assert hub.repos[0]["name"] == "r"
    assert hub.tokens == {"Bearer hf_of_the_test"}
    assert hub.files == {path.name: path.read_bytes() for path in out.iterdir()}
    assert f"uploaded: {hub.url}/me/r" in capsys.readouterr().out
    assert 'from_pretrained("me/r"' in card(out)[1]


def test_an_upload_that_is_refused_leaves_the_folder(hub: Hub, tmp_path: Path) -> None:
    hub.refuses = True
    with pytest.raises(
        ConnectionError, match=r"me/r could not be uploaded: [\s\S]*read-only token[\s\S]*hf upload me/r"
    ):
        run(Args(str(tmp_path / "a"), run="r", stage="sft", push="me/r"))
    assert (tmp_path / "a" / "model.safetensors").exists()


def test_a_hub_that_is_not_there_leaves_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="could not be uploaded"):
        run(Args(str(tmp_path / "a"), run="r", stage="sft", push="me/r"))
    assert (tmp_path / "a" / "model.safetensors").exists()


def test_without_a_token_nothing_is_sent(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConnectionError, match="no token for the hub"):
        run(Args(str(tmp_path / "a"), run="r", stage="sft", push="me/r"))
    assert not hub.tokens
    assert (tmp_path / "a" / "model.safetensors").exists()


def test_a_nanochat_checkpoint_comes_back_the_same(raychat_home: Path, tmp_path: Path) -> None:
    storage, out = str(raychat_home), str(tmp_path / "nanochat")
    run(Args(out, run="r", stage="sft", to="nanochat"))
    first = import_run(f"{out}/chatsft_checkpoints/r", storage, "back")
    assert first == f"{storage}/runs/back/sft/step_000002"
    run(Args(f"{out}-again", run="back", stage="sft", to="nanochat"))
    second = import_run(f"{out}-again/chatsft_checkpoints/back", storage, "again")
    weights = [Path(path, "model.safetensors").read_bytes() for path in (first, second)]
    assert weights[0] == weights[1]
