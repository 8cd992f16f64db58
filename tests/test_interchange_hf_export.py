"""Exported models in transformers against ours: logits, answers, tokens, chats."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import raychat_bpe
import tiktoken
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bpe import ASSIGNED, SAMPLE
from test_chat_template import conversation
from test_model_gpt2 import random_model as random_gpt2
from tiktoken.load import load_tiktoken_bpe

from raychat.chat.template import render, render_prompt
from raychat.engine.engine import Engine
from raychat.engine.sampling import SamplingParams
from raychat.interchange import hf_export
from raychat.model.base import Model
from raychat.model.gpt import GPTConfig
from raychat.model.gpt2 import GPT2Config
from raychat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

transformers = pytest.importorskip("transformers")

BYTES = tiny.byte_tokenizer()
CONTEXT = 160  # the short window is 128
GPT2 = GPT2Config(sequence_len=CONTEXT, vocab_size=265, n_layer=3, n_head=4, n_embd=64)
PROMPTS = [[BYTES.bos, *BYTES.encode("Once upon a time in a " + "very " * n + "small town")] for n in (1, 18, 0)]


def small(**changes: Any) -> Model:
    """A random model of the current generation that is quick to make."""
    sizes = {"sequence_len": CONTEXT, "vocab_size": 265, "n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 32}
    return tiny._random(GPTConfig(**(sizes | changes)), seed=0)


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, BYTES.vocab_size, shape, generator=torch.Generator().manual_seed(0))


def greedy(model: Model, num_tokens: int) -> list[list[int]]:
    """What our engine adds to each of PROMPTS."""
    params = SamplingParams(0.0, max_new_tokens=num_tokens, stop_ids=())
    return [completion.ids for completion in Engine(model, BYTES).generate(PROMPTS, params)]


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(str(folder)).eval()


def theirs_greedy(model: Any, prompt: list[int], num_tokens: int, **settings: Any) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **settings,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "model, name",
    [
        (tiny.first_generation(), "NanoChatForCausalLM"),
        (random_gpt2(GPT2), "GPT2LMHeadModel"),
        (random_gpt2(replace(GPT2, bias=False)), "GPT2LMHeadModel"),
    ],
    ids=["nanochat", "gpt2", "gpt2 without biases"],
)
@torch.no_grad()
def test_transformers_own_classes_give_our_logits_and_our_text(model: Model, name: str, tmp_path: Path) -> None:
    form = hf_export.write_model(str(tmp_path), model, BYTES, chat=False)
    theirs = loaded(tmp_path)
    assert type(theirs).__name__ == name
    assert not form.remote_code
    assert form.weights.keys() | {"lm_head.weight"} == theirs.state_dict().keys()  # GPT-2's head is its embedding
    assert theirs.config.pad_token_id is None  # its embedding would not be trained
    torch.testing.assert_close(theirs(ids(2, 90)).logits, model(ids(2, 90)), rtol=1e-4, atol=1e-4)
    for prompt, answer in zip(PROMPTS, greedy(model, 25), strict=True):
        for cached in (True, False):
            assert theirs_greedy(theirs, prompt, 25, use_cache=cached) == answer
        assert len(set(answer)) > 5  # no loop of a few tokens


# In a process of its own: the modeling file, loaded as code of the folder, where raychat cannot be imported.
FRESH = """
import json, sys
sys.modules["raychat"] = None
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

folder, out, prompts, new = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
own = {"trust_remote_code": True}
settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None}
model = AutoModelForCausalLM.from_pretrained(folder, **own).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, **own)
answers = {}
for cached in (True, False):
    answers[f"single, cached {cached}"] = [
        model.generate(torch.tensor([p]), use_cache=cached, **settings)[0, len(p) :].tolist() for p in prompts
    ]
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    width = batch["input_ids"].size(1)
    answers[f"batch, cached {cached}"] = model.generate(**batch, use_cache=cached, **settings)[:, width:].tolist()
half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **own).eval()
with torch.no_grad():
    idx = torch.load(out + "/idx.pt")
    torch.save([model(idx).logits, half(idx).logits], out + "/logits.pt")
print(json.dumps({
    "answers": answers,
    "class": type(model).__name__,
    "layers": AutoConfig.from_pretrained(folder, **own).num_hidden_layers,
    "half": sorted({str(p.dtype) for p in half.parameters()}),
    "raychat": sorted(name for name, module in sys.modules.items() if name.split(".")[0] == "raychat" and module),
}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_current_generation_runs_where_raychat_is_not(tmp_path: Path) -> None:
    model = tiny.random_model(sequence_len=CONTEXT)
    folder, out = tmp_path / "model", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    assert hf_export.write_model(str(folder), model, BYTES, chat=False).remote_code
    idx = ids(2, CONTEXT)
    torch.save(idx, out / "idx.pt")
    num_tokens = CONTEXT - max(map(len, PROMPTS))
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", FRESH, str(folder), str(out), json.dumps(PROMPTS), str(num_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["class"], found["layers"], found["raychat"]) == ("RaychatForCausalLM", 3, [])
    assert found["half"] == ["torch.bfloat16"]
    with torch.no_grad():
        expected = model(idx)
    logits, half = torch.load(out / "logits.pt")
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert half.dtype == torch.float32
    assert float((half - expected).abs().mean()) < 0.05 * float(expected.std())  # bf16 has three digits
    answers = greedy(model, num_tokens)
    assert len(found["answers"]) == 4
    for name, given_answers in found["answers"].items():
        assert given_answers == answers, name
    assert all(len(set(answer)) > 10 for answer in answers)


@pytest.fixture(scope="module")
def current() -> Iterator[tuple[Model, Any]]:
    """A model of the current generation, and the same in the modeling file's class."""
    from raychat.interchange.modeling_raychat import RaychatConfig, RaychatForCausalLM

    model = tiny.random_model(sequence_len=CONTEXT)
    form = hf_export.exported(model)
    theirs = RaychatForCausalLM(RaychatConfig(**form.config)).eval()
    theirs.load_state_dict(form.weights)
    with torch.no_grad():
        yield model, theirs


def test_any_part_of_a_generation_may_be_missing() -> None:
    from raychat.interchange.modeling_raychat import RaychatConfig, RaychatForCausalLM

    for part in ("value_embeddings", "residual_scalars", "smear", "backout"):
        model = small(**{part: False})
        form = hf_export.exported(model)
        theirs = RaychatForCausalLM(RaychatConfig(**form.config)).eval()
        theirs.load_state_dict(form.weights)
        with torch.no_grad():
            torch.testing.assert_close(theirs(ids(1, 40)).logits, model(ids(1, 40)), rtol=1e-4, atol=1e-4)


def test_a_text_in_pieces_is_the_whole_text(current: tuple[Model, Any]) -> None:
    """The second piece needs the smear's token before it, and the windows of the first."""
    _, theirs = current
    idx, cache, pieces = ids(2, CONTEXT), None, []
    for piece in idx.split([100, 45, 1, 14], dim=1):
        out = theirs(piece, past_key_values=cache, use_cache=True)
        cache, pieces = out.past_key_values, [*pieces, out.logits]
    torch.testing.assert_close(torch.cat(pieces, dim=1), theirs(idx).logits, rtol=1e-4, atol=1e-4)


def test_beams_take_their_cache_along(current: tuple[Model, Any]) -> None:
    _, theirs = current
    cached, whole = (theirs_greedy(theirs, PROMPTS[0], 20, num_beams=3, use_cache=cache) for cache in (True, False))
    assert cached == whole


def test_padding_on_the_right_changes_nothing(current: tuple[Model, Any]) -> None:
    model, theirs = current
    idx = ids(2, 50)
    mask = torch.ones_like(idx)
    mask[0, 30:] = 0
    logits = theirs(idx, attention_mask=mask).logits
    torch.testing.assert_close(logits[0, :30], model(idx[:1, :30])[0], rtol=1e-4, atol=1e-4)


def test_loss_is_ours(current: tuple[Model, Any]) -> None:
    model, theirs = current
    idx = ids(2, 50)
    labels = idx.clone()
    labels[0, :20] = -100
    targets = torch.where(labels[:, 1:] < 0, -1, labels[:, 1:])
    nll = model.nll(idx[:, :-1], targets)
    expected = nll.sum() / (targets >= 0).sum()
    torch.testing.assert_close(theirs(idx, labels=labels).loss, expected, rtol=1e-5, atol=1e-5)


def test_logits_of_some_positions(current: tuple[Model, Any]) -> None:
    _, theirs = current
    idx = ids(2, 9)
    torch.testing.assert_close(theirs(idx, logits_to_keep=2).logits, theirs(idx).logits[:, -2:])


def test_a_mask_of_another_length_is_refused(current: tuple[Model, Any]) -> None:
    _, theirs = current
    cache = theirs(ids(1, 9), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 3\); expected \(1, 12\)"):
        theirs(ids(1, 3), attention_mask=torch.ones(1, 3), past_key_values=cache)


def test_a_chat_model_stops_after_its_turn(tmp_path: Path) -> None:
    start, end = (BYTES.special[f"<|assistant_{side}|>"] for side in ("start", "end"))
    model = tiny.scripted_model([[start, *b"hi", end]])
    hf_export.write_model(str(tmp_path), model, BYTES, chat=True)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written["eos_token_id"] == [end, BYTES.bos]
    base = tmp_path / "base"
    base.mkdir()
    hf_export.write_model(str(base), model, BYTES, chat=False)
    assert json.loads((base / "generation_config.json").read_text())["eos_token_id"] == BYTES.bos
    assert "chat_template" not in json.loads((base / "tokenizer_config.json").read_text())


def test_models_of_chat_stages_with_all_special_tokens_can_chat() -> None:
    texts_alone = Tokenizer(BYTES.tokens, ["<|endoftext|>"])
    assert hf_export.can_chat("rl", BYTES)
    assert not hf_export.can_chat("base", BYTES)
    assert not hf_export.can_chat("sft", texts_alone)


# Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(raychat_bpe.Counts([SAMPLE], SPLIT_PATTERN), 256 + 120 + len(SPECIAL_TOKENS))


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported chat model's folder, of the tokenizer's vocabulary."""
    folder = tmp_path_factory.mktemp("exported")
    hf_export.write_model(str(folder), small(vocab_size=tokenizer.vocab_size), tokenizer, chat=True)
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))


text = st.text(ASSIGNED) | st.text("It's WE'LL 12\r\n \t\u00a0éñ猫क्🎉_.!", max_size=80)
specials = st.sampled_from(SPECIAL_TOKENS)
hostile = st.lists(text | specials, max_size=3).map("".join)  # special tokens within a text


@settings(max_examples=60, deadline=None)
@given(text=hostile)
def test_ids_are_ours_behind_a_bos(tokenizer: Tokenizer, theirs: Any, text: str) -> None:
    expected = tokenizer.encode(text)
    assert theirs(text, split_special_tokens=True)["input_ids"] == [tokenizer.bos, *expected]
    assert theirs(text, split_special_tokens=True, add_special_tokens=False)["input_ids"] == expected
    assert theirs.decode(expected) == text


def test_without_asking_transformers_makes_special_tokens_of_text(tokenizer: Tokenizer, theirs: Any) -> None:
    assert theirs("a<|bos|>", add_special_tokens=False)["input_ids"] == [*tokenizer.encode("a"), tokenizer.bos]


PIECES = [
    *SPECIAL_TOKENS,
    "",
    " ",
    "\n",
    "Hello",
    "It's 12.5",
    " \t\r\n",
    "naïve क्🎉",
    "{{ messages }}",
    "{% raw %}",
    "<|",
]


def chat(draw: random.Random) -> list[dict[str, Any]]:
    """A random conversation, with tool calls, special tokens in texts, and perhaps a system message."""

    def text(least: int = 0) -> str:
        return "x" * least + "".join(draw.choices(PIECES, k=draw.randrange(4)))

    def answer() -> Any:
        kinds = draw.choices(["text", "python", "python_output"], k=draw.randrange(5))
        parts = [{"type": kind, "text": text()} for kind in kinds]
        return [*parts, {"type": "text", "text": text(least=1)}] if draw.random() < 0.7 else text(least=1)

    pairs = [(text(least=1), answer()) for _ in range(draw.randint(1, 4))]
    return conversation(pairs, text() if draw.random() < 0.5 else None)


@pytest.mark.timeout(1800)  # seconds of work, but on a busy machine minutes
def test_a_thousand_chats_have_our_ids(tokenizer: Tokenizer, theirs: Any) -> None:
    draw = random.Random(0)
    safe = {"sanitize_control_tokens": True, "return_dict": False}
    for _ in range(1000):
        messages = chat(draw)
        assert theirs.apply_chat_template(messages, **safe) == render(tokenizer, messages).ids
        prompt = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, **safe)
        assert prompt == render_prompt(tokenizer, messages[:-1])


REFUSED: list[Any] = [
    [{"role": "system", "content": "s"}],
    [{"role": "assistant", "content": "a"}],
    [{"role": "user", "content": "u"}] * 2,
    [{"role": "user", "content": "u"}, {"role": "tool", "content": "t"}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": [{"type": "text", "text": "u"}]}],
    conversation([("u", "")]),
    conversation([("u", [])]),
    conversation([("u", [{"type": "text", "text": ""}])]),
    conversation([("u", [{"type": "image", "text": "x"}])]),
]


@pytest.mark.parametrize("messages", REFUSED)
def test_what_we_refuse_the_template_refuses(theirs: Any, messages: Any) -> None:
    jinja2 = pytest.importorskip("jinja2")
    with pytest.raises(ValueError):
        render(BYTES, messages)
    with pytest.raises(jinja2.exceptions.TemplateError):
        theirs.apply_chat_template(messages)


def test_a_prompt_ends_with_the_user(theirs: Any) -> None:
    jinja2 = pytest.importorskip("jinja2")
    with pytest.raises(jinja2.exceptions.TemplateError, match="a prompt ends with a user message"):
        theirs.apply_chat_template(conversation([("u", "a")]), add_generation_prompt=True)


def test_characters_are_exported_where_each_is_a_byte(tmp_path: Path) -> None:
    characters = Tokenizer.of_characters("To be, or not to be:\nthat is the question.")
    hf_export.write_model(str(tmp_path), small(vocab_size=characters.vocab_size), characters, chat=False)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    text = "to quote\nis the bee"
    assert theirs(text, add_special_tokens=False)["input_ids"] == characters.encode(text)
    assert theirs.decode(characters.encode(text)) == text
    with pytest.raises(ValueError, match="characters of more than one byte"):
        hf_export.tokenizer_files(Tokenizer.of_characters("naïve"), 32, chat=False)


@pytest.fixture(scope="module")
def encoding(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    """As docs/interchange.md builds it."""
    folder = tmp_path_factory.mktemp("tiktoken")
    hf_export.write_tiktoken(str(folder), tokenizer)
    ranks = load_tiktoken_bpe(str(folder / "tokenizer.tiktoken"))
    return tiktoken.Encoding("d20", mergeable_ranks=ranks, **json.loads((folder / "tiktoken.json").read_text()))


@settings(max_examples=60, deadline=None)
@given(text=hostile)
def test_tiktoken_gives_our_ids(tokenizer: Tokenizer, encoding: tiktoken.Encoding, text: str) -> None:
    assert encoding.encode_ordinary(text) == tokenizer.encode(text)
    assert encoding.decode([*tokenizer.encode(text), tokenizer.bos]) == f"{text}<|bos|>"
    assert encoding.n_vocab == tokenizer.vocab_size
