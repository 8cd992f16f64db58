"""Checkpoints of nanochat, nanoGPT and transformers become runs: the same weights, the same logits, in use at once."""

import json
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiny
import torch
import toy
from torch import Tensor
from torch.nn import functional as F

from jobs import import_checkpoint, sample
from raychat import checkpoint, huggingface, paths, runs
from raychat.cluster import Cluster
from raychat.evals.evaluation import LoadedModel
from raychat.interchange import nanochat
from raychat.interchange.importing import import_run
from raychat.log import read_metrics
from raychat.model.base import Model
from raychat.model.convert import gpt2_to_transformers, nanochat_to_transformers
from raychat.model.gpt import GPT
from raychat.model.gpt2 import GPT2, GPT2Config
from raychat.optim import schedule
from raychat.tokenizer import Tokenizer
from raychat.train.finetune import child_recipe
from raychat.train.run import run_stage
from raychat.train.stage import Stage
from raychat.train.token_feed import TokenSource

TOKENIZER = tiny.byte_tokenizer()
CURRENT = {
    "transformer.wte.weight",
    "lm_head.weight",
    "resid_lambdas",
    "x0_lambdas",
    "smear_gate.weight",
    "smear_lambda",
    "backout_lambda",
    "value_embeds.0.weight",
    "value_embeds.2.weight",
    "transformer.h.0.attn.ve_gate.weight",
    "transformer.h.2.attn.ve_gate.weight",
    *(f"transformer.h.{i}.attn.{name}.weight" for i in range(3) for name in ("c_q", "c_k", "c_v", "c_proj")),
    *(f"transformer.h.{i}.mlp.{name}.weight" for i in range(3) for name in ("c_fc", "c_proj")),
}
FIRST = {name for name in CURRENT if name.startswith(("transformer", "lm_head")) and "ve_gate" not in name}


def ids() -> Tensor:
    return torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(0))


def rounded(model: GPT) -> GPT:
    """A model as a nanochat checkpoint can hold it: embeddings in bf16; the first generation has no padding."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith(("wte", "lm_head")) and not model.config.smear:
                p[265:] = 0
            if name.startswith(("wte", "value_embeds")):
                p.copy_(p.bfloat16())
    return model


GENERATIONS = {
    "current": (partial(tiny.random_model, 3), CURRENT),
    "october": (partial(tiny.first_generation, 3), FIRST),
}


@pytest.fixture(params=GENERATIONS)
def generation(request: pytest.FixtureRequest) -> tuple[GPT, set[str]]:
    make, names = GENERATIONS[request.param]
    return rounded(make()), names


def nanochat_folder(root: Path, model: Model, stage: str = "sft", step: int = 700) -> Path:
    """A folder as nanochat writes it; returns that of the checkpoint."""
    return Path(nanochat.write(str(root), stage, "d3", step, model, TOKENIZER, 0.75)).parent


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def loaded(path: str) -> LoadedModel:
    return LoadedModel.load(path)


def test_a_nanochat_checkpoint_has_its_names_and_shapes(generation: tuple[GPT, set[str]], tmp_path: Path) -> None:
    model, names = generation
    folder = nanochat_folder(tmp_path, model)
    assert folder == tmp_path / "chatsft_checkpoints" / "d3"
    weights = torch.load(folder / "model_000700.pt", weights_only=True)
    assert set(weights) == names
    bf16 = {name for name, tensor in weights.items() if tensor.dtype == torch.bfloat16}
    assert bf16 == {name for name in names if "wte" in name or "value_embeds" in name}
    assert weights["lm_head.weight"].shape == (320 if names == CURRENT else 265, 64)
    meta = json.loads((folder / "meta_000700.json").read_text())
    assert (meta["step"], meta["val_bpb"]) == (700, 0.75)
    sizes = {"sequence_len": 160, "vocab_size": 265, "n_layer": 3, "n_head": 4, "n_embd": 64}
    sizes |= {"n_kv_head": 2, "window_pattern": "SL"} if names == CURRENT else {"n_kv_head": 4}
    assert meta["model_config"] == sizes
    encoding = pickle.loads((tmp_path / "tokenizer" / "tokenizer.pkl").read_bytes())
    assert encoding.encode("a<|bos|>", allowed_special="all") == [97, 256]
    lengths = torch.load(tmp_path / "tokenizer" / "token_bytes.pt", weights_only=True)
    assert lengths.tolist() == [1] * 256 + [0] * 9


def test_nanochat_comes_in_and_goes_out_byte_by_byte(generation: tuple[GPT, set[str]], tmp_path: Path) -> None:
    model, _ = generation
    folder = nanochat_folder(tmp_path / "theirs", model)
    path = import_run(str(folder), str(tmp_path), "x")
    assert path == str(tmp_path / "runs/x/sft/step_000700")
    ours, meta = checkpoint.load_model(path, torch.device("cpu"))
    assert ours.config == model.config
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert meta.metrics == {"val_bpb": 0.75}
    assert meta.recipe.tokenizer == checkpoint.load_tokenizer(path).fingerprint == TOKENIZER.fingerprint
    assert files(nanochat_folder(tmp_path / "again", ours)) == files(folder)
    again = import_run(str(tmp_path / "again/chatsft_checkpoints/d3"), str(tmp_path), "y")
    assert paths.read_bytes(f"{again}/model.safetensors") == paths.read_bytes(f"{path}/model.safetensors")


def test_compiled_weights_and_an_older_step(tmp_path: Path) -> None:
    model = rounded(tiny.random_model())
    folder = nanochat_folder(tmp_path, model, step=5)
    weights = torch.load(folder / "model_000005.pt", weights_only=True)
    torch.save({f"_orig_mod.{name}": tensor for name, tensor in weights.items()}, folder / "model_000005.pt")
    nanochat_folder(tmp_path, model, step=1_000_000)
    older = import_run(str(folder / "model_000005.pt"), str(tmp_path / "store"), "x", "base")
    assert older.endswith("base/step_000005")
    assert torch.equal(loaded(older).model(ids()), model(ids()))
    assert import_run(str(folder), str(tmp_path / "store"), "x").endswith("sft/step_1000000")


def changed(file: Path, **weights: Tensor | None) -> None:
    """Write other weights in place of some; None takes one away."""
    there = torch.load(file, weights_only=True)
    named = {name.replace("__", "."): tensor for name, tensor in weights.items()}
    torch.save({name: tensor for name, tensor in (there | named).items() if tensor is not None}, file)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"transformer__h__1__attn__c_k__weight": None}, r"no transformer.h.1.attn.c_k.weight; expected .* \(32, 64\)"),
        ({"transformer__h__1__attn__c_x__weight": torch.ones(2)}, "unknown weights: transformer.h.1.attn.c_x.weight"),
        ({"resid_lambdas": torch.ones(4)}, r"resid_lambdas has shape \(4,\); expected \(3,\)"),
        ({"lm_head__weight": torch.ones(200, 64)}, "lm_head.weight has 200 rows"),
        ({"smear_lambda": None}, "a generation between"),
        ({"transformer__wte__weight": torch.ones(1, 1).expand(2**20, 2**20)}, "more than the file holds"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    folder = nanochat_folder(tmp_path, tiny.random_model())
    changed(folder / "model_000700.pt", **change)
    with pytest.raises(ValueError, match=message):
        import_run(str(folder), str(tmp_path), "x")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n_layer": None}, "n_layer is None"),
        ({"n_layer": 10**9}, "n_layer is 1000000000"),
        ({"n_layer": 2**20}, "1048576 layers, and has"),
        ({"n_embd": 65}, "n_embd 65 over n_head 4"),
        ({"window_pattern": None}, "no window_pattern"),
        ({"vocab_size": 100}, "its tokenizer 265 tokens"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = nanochat_folder(tmp_path, tiny.random_model())
    meta = json.loads((folder / "meta_000700.json").read_text())
    meta["model_config"] |= change
    (folder / "meta_000700.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=message):
        import_run(str(folder), str(tmp_path), "x")


def test_nanochat_has_no_model_with_other_constants(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no GPT2"):
        nanochat_folder(tmp_path, tiny.gpt2())
    model = GPT(toy.GPTConfig(vocab_size=265, n_layer=1, n_head=1, n_kv_head=1, n_embd=64, qk_scale=2.0))
    with pytest.raises(ValueError, match=r"qk_scale 2.0, not 1.2"):
        nanochat_folder(tmp_path, model)


def nanogpt_weights(model: GPT2) -> dict[str, Tensor]:
    """GPT-2's weights as nanoGPT has them: matrices not transposed, the head beside the embedding."""
    theirs = gpt2_to_transformers(model)
    theirs = {k: t.t().contiguous() if ".h." in k and t.dim() == 2 else t for k, t in theirs.items()}
    return theirs | {"lm_head.weight": theirs["transformer.wte.weight"]}


def nanogpt_folder(root: Path, model: GPT2, meta: dict[str, Any] | None = None, **changes: Any) -> Path:
    config = model.config
    args = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd, "bias": config.bias}
    args |= {"block_size": config.sequence_len, "vocab_size": config.vocab_size, "dropout": config.dropout}
    weights = {f"_orig_mod.{name}": tensor for name, tensor in nanogpt_weights(model).items()}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))]).state_dict()
    root.mkdir(parents=True, exist_ok=True)
    saved = {"model": weights, "optimizer": optimizer, "model_args": args | changes, "iter_num": 250}
    torch.save(saved | {"best_val_loss": torch.tensor(1.5), "config": {"dataset": "x", "lr": 1e-3}}, root / "ckpt.pt")
    if meta is not None:
        (root / "meta.pkl").write_bytes(pickle.dumps(meta))
    return root


CHARACTERS = "\n abcdefghij"
META = {
    "vocab_size": len(CHARACTERS),
    "stoi": {c: i for i, c in enumerate(CHARACTERS)},
    "itos": dict(enumerate(CHARACTERS)),
}


def character_model(bias: bool = False) -> GPT2:
    config = GPT2Config(sequence_len=32, vocab_size=len(CHARACTERS), n_layer=2, n_head=2, n_embd=16, bias=bias)
    return tiny._random(config, 1)


@pytest.mark.parametrize("bias", [False, True])
def test_nanogpts_characters_are_continued(bias: bool, tmp_path: Path, raychat_home: Path) -> None:
    model = character_model(bias)
    folder = nanogpt_folder(tmp_path / "out", model, META)
    path = import_checkpoint.run(import_checkpoint.Args(str(folder), run="char"))
    assert path.endswith("runs/char/base/step_000250")
    ours, idx = loaded(path), torch.tensor([[2, 5, 1, 0]])
    assert ours.tokenizer.encode("ad \n") == idx[0].tolist()
    logits, expected = ours.model(idx), model(idx)
    torch.testing.assert_close(logits[..., :12], expected)
    torch.testing.assert_close(logits[..., 12], expected.mean(-1))  # BOS
    args = sample.Args(run="char", start="abc", num_samples=2, temperature=0, max_new_tokens=8)
    first, second = sample.run(args)
    assert first == second
    assert set(first) <= set(CHARACTERS)


def test_nanogpt_with_gpt2s_tokens_and_padding(tmp_path: Path) -> None:
    """The vocabulary is padded by nanoGPT, the tokenizer given."""
    model = tiny.gpt2()
    folder = nanogpt_folder(tmp_path / "out", model, vocab_size=320)
    saved = torch.load(folder / "ckpt.pt", weights_only=True)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        table = saved["model"][f"_orig_mod.{name}"]
        saved["model"][f"_orig_mod.{name}"] = F.pad(table, (0, 0, 0, 320 - len(table)), value=0.5)
    torch.save(saved, folder / "ckpt.pt")
    TOKENIZER.save(str(tmp_path / "words"))
    path = import_run(str(folder / "ckpt.pt"), str(tmp_path), "x", tokenizer=str(tmp_path / "words"))
    torch.testing.assert_close(loaded(path).model(ids()), model(ids()))


def test_nanogpt_with_gpt2s_vocabulary_takes_gpt2s_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GPT2Config(sequence_len=8, vocab_size=50304, n_layer=1, n_head=1, n_embd=8, bias=False)
    folder = str(nanogpt_folder(tmp_path / "out", tiny._random(config, 1)))

    def offline(name: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(ValueError, match=r"no network.*pass --tokenizer with a folder of transformers' GPT-2"):
        import_run(folder, str(tmp_path), "x")
    words = Tokenizer([bytes([i]) for i in range(256)], ["<|endoftext|>"], huggingface.GPT2_PATTERN)
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": words.to_tiktoken()}.get)
    path = import_run(folder, str(tmp_path), "x")
    assert checkpoint.load_tokenizer(path).fingerprint == words.fingerprint
    assert checkpoint.read_meta(path).recipe.model["vocab_size"] == 257  # the rest was padding


@pytest.mark.parametrize(
    "meta, changes, message",
    [
        (None, {}, "pass --tokenizer data/<dataset>/meta.pkl"),
        (META | {"vocab_size": 9}, {}, "ids that are missing"),
        (META, {"vocab_size": 9}, "has 9 characters, and its tokenizer 12"),
        (META, {"bias": 3}, "bias is 3"),
        (META, {"block_size": "8"}, "block_size is '8'"),
        (META, {"block_size": 8}, r"wpe.weight has shape \(32, 16\); expected \(8, 16\)"),
    ],
)
def test_a_ckpt_that_does_not_fit_is_refused(
    meta: dict[str, Any] | None, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = nanogpt_folder(tmp_path, character_model(), meta, **changes)
    with pytest.raises(ValueError, match=message):
        import_run(str(folder), str(tmp_path), "x")


def test_a_pt_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"state": torch.ones(2)}, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=r"holds \['state'\], but no model"):
        import_run(str(tmp_path), str(tmp_path), "x")


def transformers_folder(folder: Path, model: Model, *, shards: bool = False) -> Any:
    """Save transformers' model with these weights, and our tokenizer; return their model."""
    transformers = pytest.importorskip("transformers")
    config = model.config
    sizes = {"vocab_size": config.vocab_size, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if isinstance(model, GPT2):
        sizes |= {"n_positions": config.sequence_len, "n_embd": config.n_embd, "n_layer": config.n_layer}
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_head=config.n_head, **sizes))
        theirs.load_state_dict(gpt2_to_transformers(model), strict=False)
    else:
        sizes |= {"hidden_size": config.n_embd, "intermediate_size": 4 * config.n_embd}
        sizes |= {"num_hidden_layers": config.n_layer, "num_attention_heads": config.n_head}
        sizes |= {"num_key_value_heads": config.n_kv_head, "max_position_embeddings": config.sequence_len}
        theirs = transformers.NanoChatForCausalLM(transformers.NanoChatConfig(**sizes))
        theirs.load_state_dict(nanochat_to_transformers(model))
    theirs.eval().save_pretrained(folder, max_shard_size="100KB" if shards else "1GB")
    paths.write_json(str(folder / "tokenizer.json"), huggingface.to_json(TOKENIZER))
    return theirs


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("make", [tiny.gpt2, tiny.first_generation])
@torch.no_grad()
def test_transformers_models_come_in_with_their_logits(make: Any, shards: bool, tmp_path: Path) -> None:
    model = make(4)
    theirs = transformers_folder(tmp_path / "hf", model, shards=shards)
    assert (tmp_path / "hf/model.safetensors.index.json").exists() == shards
    path = import_run(str(tmp_path / "hf"), str(tmp_path), "x", "sft")
    ours = loaded(path)
    torch.testing.assert_close(ours.model(ids()), theirs(ids()).logits, rtol=1e-4, atol=1e-4)
    assert ours.tokenizer.fingerprint == TOKENIZER.fingerprint
    prompt = ids()[:1]
    expected = theirs.generate(prompt, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(prompt))
    params = sample_greedily(12)
    (got,) = ours.engine.generate([prompt[0].tolist()], params)
    assert got.ids == expected[0, 20:].tolist()


def sample_greedily(num: int) -> Any:
    from raychat.engine.sampling import SamplingParams

    return SamplingParams(0, None, max_new_tokens=num, stop_ids=())


def test_transformers_models_come_in_go_out_and_come_in_again(tmp_path: Path) -> None:
    for run, make in (("gpt2", tiny.gpt2), ("nanochat", tiny.first_generation)):
        transformers_folder(tmp_path / run, make(4))
        first = import_run(str(tmp_path / run), str(tmp_path), run)
        transformers_folder(tmp_path / f"{run}-again", loaded(first).model)
        again = import_run(str(tmp_path / f"{run}-again"), str(tmp_path), f"{run}-again")
        assert paths.read_bytes(f"{again}/model.safetensors") == paths.read_bytes(f"{first}/model.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "llama"}, "model_type 'llama'; raychat reads gpt2, nanochat"),
        ({"activation_function": "relu"}, "activation_function is 'relu'; raychat's model has 'gelu_new'"),
        ({"n_inner": 99}, "n_inner is 99"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"n_head": 0}, "n_head is 0"),
        ({"vocab_size": 264}, "vocabulary of 264, and its tokenizer 265"),
    ],
)
def test_other_architectures_of_transformers_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    transformers_folder(tmp_path, tiny.gpt2())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        import_run(str(tmp_path), str(tmp_path), "x")


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu"},
        {"intermediate_size": 9},
        {"attention_bias": True},
        {"head_dim": 8},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "default"}},
        {"final_logit_softcapping": None},
    ],
)
def test_other_nanochats_of_transformers_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    transformers_folder(tmp_path, tiny.first_generation())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=next(iter(change)).replace("rope_parameters", "rope_")):
        import_run(str(tmp_path), str(tmp_path), "x")


@pytest.mark.parametrize("text, message", [("{", "is not JSON"), ("[]", "holds a list"), ("{}", "model_type 'None'")])
def test_a_config_that_is_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        import_run(str(tmp_path), str(tmp_path), "x")


def test_an_index_reads_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    transformers_folder(tmp_path / "a", tiny.gpt2())
    (tmp_path / "a/model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../model.safetensors"}}
    (tmp_path / "a/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="in the same folder"):
        import_run(str(tmp_path / "a"), str(tmp_path), "x")


def test_gpt2s_vocabulary_and_merges(tmp_path: Path) -> None:
    data = huggingface.to_json(Tokenizer([*(bytes([i]) for i in range(256)), b"ab", b"abc"], ["<|endoftext|>"]))
    (tmp_path / "vocab.json").write_text(json.dumps(data["model"]["vocab"] | {"<|endoftext|>": 258}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nab c\n")
    transformers_folder(tmp_path, tiny.gpt2())
    (tmp_path / "tokenizer.json").unlink()
    tokenizer = loaded(import_run(str(tmp_path), str(tmp_path), "x")).tokenizer
    assert tokenizer.encode("abcab") == [257, 256]
    assert tokenizer.special == {"<|endoftext|>": 258}


class Hub(ThreadingHTTPServer):
    """Serves a folder as the hub serves openai-community/gpt2, and counts what is read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.folder = folder
        self.read: set[str] = set()


class _HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        repo, sha = "openai-community/gpt2", "0" * 40
        path = self.path.partition("?")[0]
        listing = [
            {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
            for p in self.server.folder.iterdir()
        ]
        answers: dict[str, Any] = {
            f"/api/models/{repo}/revision/main": {"id": repo, "sha": sha},
            f"/api/models/{repo}/tree/{sha}": listing,
        }
        name = path.removeprefix(f"/{repo}/resolve/{sha}/")
        if path in answers:
            content = json.dumps(answers[path]).encode()
        elif (file := self.server.folder / name).is_file():
            content = file.read_bytes()
            self.server.read.add(name)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hash(name):x}"')
        self.send_header("X-Repo-Commit", sha)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(tmp_path / "served")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_is_fetched_without_anything_that_could_run(hub: Hub, tmp_path: Path) -> None:
    model = tiny.gpt2()
    transformers_folder(hub.folder, model)
    (hub.folder / "modeling.py").write_text("raise SystemExit")
    (hub.folder / "pytorch_model.bin").write_text("a pickle")
    path = import_run("gpt2", str(tmp_path), "x")
    assert torch.equal(loaded(path).model(ids()), model(ids()))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= hub.read
    assert not {"modeling.py", "pytorch_model.bin"} & hub.read


def test_sample_imports_openais_gpt2_the_first_time(hub: Hub, tmp_path: Path) -> None:
    transformers_folder(hub.folder, tiny.gpt2())
    settings = sample.Args("gpt2", num_samples=1, max_new_tokens=2, seed=1, cluster=Cluster(storage_path=str(tmp_path)))
    first = sample.run(settings)
    hub.read.clear()
    assert sample.run(settings) == first
    assert not hub.read


def test_what_the_hub_has_not_is_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nobody/nothing is no folder here, and could not be fetched"):
        import_run("nobody/nothing", str(tmp_path), "x")


@pytest.mark.parametrize(
    "source, message",
    [
        ("/no/such/folder", "there is no folder /no/such/folder"),
        ("./folder", "there is no folder"),
        ("model_000001.pt", "there is no file"),
        ("{}/empty", "there is no folder"),
        ("{}/both", "holds config.json, ckpt.pt; expected one of"),
        ("{}/tags", "holds only d12, d20; expected one of"),
        ("{}/meta", "has no meta_000003.json beside it"),
        ("{}/words/x_checkpoints/d1", "no tokenizer at .*/words/tokenizer"),
    ],
)
def test_a_source_that_is_none_or_two_is_refused(source: str, message: str, tmp_path: Path) -> None:
    for name in ("both/config.json", "both/ckpt.pt", "tags/d12/x", "tags/d20/x", "meta/model_000003.pt"):
        paths.write_text(str(tmp_path / name), "{}")
    for name in ("model_000003.pt", "meta_000003.json"):
        paths.write_text(str(tmp_path / "words/x_checkpoints/d1" / name), "{}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        import_run(source.format(tmp_path), str(tmp_path), "x")


def test_the_same_import_again_is_there_already_and_another_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = nanochat_folder(tmp_path / "a", tiny.random_model())
    other = nanochat_folder(tmp_path / "b", tiny.random_model(1))
    first = import_run(str(theirs), str(tmp_path), "x")
    assert import_run(str(theirs), str(tmp_path), "x") == first
    assert "imported already" in capsys.readouterr().out
    with pytest.raises(ValueError, match="choose another --run"):
        import_run(str(other), str(tmp_path), "x")
    nanogpt_folder(tmp_path / "c", character_model(), META)
    with pytest.raises(ValueError, match="holds another tokenizer"):
        import_run(str(tmp_path / "c"), str(tmp_path), "x")


def test_an_imported_model_is_found_and_chatted_with(tmp_path: Path) -> None:
    import_run(str(nanochat_folder(tmp_path / "a", tiny.random_model())), str(tmp_path), "x")
    assert runs.find_checkpoint(str(tmp_path)).id == "x-sft"
    assert runs.checkpoint_named(str(tmp_path), "x-sft@700") is not None


def fine_tuned(parent: str, storage: Path, steps: int = 6) -> dict[str, Any]:
    """The summary of a short stage from a checkpoint, on rows that count upwards."""
    for folder, seed in (("train", 0), ("val", 1)):
        toy.token_folder(str(storage / folder), seed=seed)
    stage = Stage(
        name="x/mid",
        storage=str(storage),
        recipe=child_recipe(parent, str(storage), batch_tokens=6 * 32),
        schedule=partial(schedule.linear_to_zero, peak=1.0),
        steps=steps,
        source=TokenSource(str(storage / "train"), str(storage / "val")),
        runtime=toy.RUNTIME,
    )
    summary = run_stage(stage, lambda row: None)
    return summary | {"rows": [row for row in read_metrics(stage.folder) if "loss" in row]}


def test_an_imported_model_is_trained_on_with_momenta_from_zero_and_a_warm_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = nanochat_folder(tmp_path / "a", toy.model(), "base")
    summary = fine_tuned(import_run(str(folder), str(tmp_path), "x"), tmp_path)
    assert "has no optimizer state" in capsys.readouterr().out
    losses, rates = ([row[key] for row in summary["rows"]] for key in ("loss", "lr"))
    assert losses[-1] < losses[0]
    assert rates == pytest.approx([1 / 3, 5 / 9, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert checkpoint.read_meta(summary["checkpoint"]).recipe.parent == "runs/x/base/step_000700"


def test_a_parent_that_lost_its_optimizer_state_is_refused(tmp_path: Path) -> None:
    run_stage(toy.token_stage(tmp_path, "base"), lambda row: None)
    parent = Path(checkpoint.latest(str(tmp_path / "runs/test/base")) or "")
    (parent / "optimizer_000.safetensors").unlink()
    with pytest.raises(ValueError, match="optimizer_000"):
        fine_tuned(str(parent), tmp_path)


def test_the_storage_may_be_a_bucket(tmp_path: Path) -> None:
    folder = nanochat_folder(tmp_path, tiny.random_model())
    storage = f"memory://{tmp_path.name}"
    args = import_checkpoint.Args(str(folder), run="x", cluster=Cluster(storage_path=storage))
    assert import_checkpoint.run(args) == f"{storage}/runs/x/sft/step_000700"
