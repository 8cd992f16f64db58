"""GPT-2 against transformers' GPT2LMHeadModel: logits, loss, gradients, cache, weights there and back."""

import math
from itertools import pairwise

import pytest
import torch
from tiny import extend
from torch import Tensor
from torch.nn import functional as F

from raychat.model import registry
from raychat.model.convert import gpt2_from_nanogpt, gpt2_from_transformers, gpt2_to_transformers
from raychat.model.gpt2 import DECAYED, GPT2, SIZES, VECTORS, GPT2Config

VOCAB = 301  # padded to 320
SMALL = GPT2Config(sequence_len=48, vocab_size=VOCAB, n_layer=3, n_head=4, n_embd=64)


def of_size(name: str) -> GPT2Config:
    """One of the four sizes, with two layers and a small vocabulary."""
    _, n_head, n_embd = SIZES[name]
    return GPT2Config(sequence_len=48, vocab_size=VOCAB, n_layer=2, n_head=n_head, n_embd=n_embd)


def random_model(config: GPT2Config) -> GPT2:
    """A model whose every part matters: no bias at 0, no LayerNorm at 1."""
    model, draw = GPT2(config), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.uniform_(0.3, 0.9, generator=draw)
            else:
                # Small beside positions: the head is the embedding, and would say the last token again and again.
                std = {"wte.weight": 0.2, "wpe.weight": 2.0}
                p.normal_(std=std.get(name, p.size(1) ** -0.5), generator=draw)
    return model.eval()


def transformers_model(ours: GPT2) -> torch.nn.Module:
    """Transformers' model with the same weights."""
    from transformers import GPT2Config as TheirConfig
    from transformers import GPT2LMHeadModel

    config = ours.config
    theirs = GPT2LMHeadModel(
        TheirConfig(
            vocab_size=config.vocab_size,
            n_positions=config.sequence_len,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    missing, unexpected = theirs.load_state_dict(gpt2_to_transformers(ours), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied
    return theirs


def ids(*shape: int) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SIZES)
def test_logits_loss_and_gradients_are_transformers(name: str) -> None:
    ours = random_model(of_size(name))
    theirs, idx = transformers_model(ours), ids(2, 48)
    expected = theirs(idx, labels=idx)
    loss = ours.nll(idx[:, :-1], idx[:, 1:]).mean()
    torch.testing.assert_close(ours(idx), expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.loss.backward()
    gradients = {k: p.grad for k, p in theirs.named_parameters() if p.grad is not None}
    ours.load_state_dict({k: p.grad for k, p in ours.named_parameters() if p.grad is not None})
    for key, value in gpt2_to_transformers(ours).items():
        torch.testing.assert_close(value, gradients[key], rtol=1e-3, atol=1e-5 * float(gradients[key].abs().max()))


@torch.no_grad()
def test_greedy_continuation_with_cache_is_transformers() -> None:
    ours = random_model(SMALL)
    theirs, prompt = transformers_model(ours), ids(2, 9)
    expected = theirs.generate(prompt, max_new_tokens=30, do_sample=False, attention_mask=torch.ones_like(prompt))
    idx, cache = prompt, ours.new_cache(2)
    extend(ours, cache, [], {slot: row[:-1] for slot, row in enumerate(prompt.tolist())})
    for _ in range(30):
        logits = extend(ours, cache, idx[:, -1].tolist(), {})
        idx = torch.cat((idx, logits.argmax(-1, keepdim=True)), dim=1)
    assert idx.tolist() == expected.tolist()
    assert len(set(idx[0].tolist())) > 10  # no loop of a few tokens


@torch.no_grad()
def test_packed_weights_change_nothing() -> None:
    model = random_model(SMALL)
    before = model(ids(2, 20))
    model.pack()
    torch.testing.assert_close(model(ids(2, 20)), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_weights_come_back_from_transformers_as_they_were(bias: bool) -> None:
    ours = random_model(GPT2Config(sequence_len=8, vocab_size=VOCAB, n_layer=2, n_head=2, n_embd=16, bias=bias))
    with torch.no_grad():
        ours.wte.weight[VOCAB:] = 0  # the padding
    back = gpt2_from_transformers(gpt2_to_transformers(ours), ours)
    assert list(back) == list(ours.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.state_dict().items())


def test_nanogpt_keeps_matrices_as_they_are_and_pads_the_vocabulary_otherwise() -> None:
    ours = random_model(SMALL)
    theirs = {k: t.t() if ".h." in k and t.dim() == 2 else t for k, t in gpt2_to_transformers(ours).items()}
    theirs["transformer.wte.weight"] = F.pad(theirs["transformer.wte.weight"], (0, 0, 0, 99))
    theirs["lm_head.weight"] = theirs["transformer.wte.weight"].clone()
    theirs["transformer.h.0.attn.bias"] = torch.ones(1, 1, 48, 48)  # the causal mask
    back = gpt2_from_nanogpt({f"_orig_mod.{name}": tensor for name, tensor in theirs.items()}, ours)
    expected = ours.state_dict() | {"wte.weight": F.pad(ours.wte.weight[:VOCAB], (0, 0, 0, 320 - VOCAB))}
    assert all(torch.equal(back[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"transformer.h.0.ln_1.weight": None}, "no h.0.ln_1.weight"),
        ({"transformer.h.0.rotary.weight": torch.ones(2)}, "unknown weights: h.0.rotary.weight"),
        ({"transformer.wpe.weight": torch.ones(3, 64)}, r"wpe.weight has shape \(3, 64\); expected \(48, 64\)"),
        ({"transformer.wte.weight": torch.ones(300, 64)}, "300 rows; expected one for each of 301 tokens"),
        ({"lm_head.weight": torch.ones(301, 64)}, "lm_head.weight differs from the embedding"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Tensor | None], message: str) -> None:
    ours = random_model(SMALL)
    weights = {k: t for k, t in (gpt2_to_transformers(ours) | change).items() if t is not None}
    with pytest.raises(ValueError, match=message):
        gpt2_from_transformers(weights, ours)


def test_initial_weights_are_gpt2s() -> None:
    model = GPT2(GPT2Config(sequence_len=256, vocab_size=500, n_layer=8, n_head=4, n_embd=128))
    model.init_weights(3)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert torch.equal(p, torch.full_like(p, float("ln_" in name and name.endswith("weight")))), name
        else:
            std = 0.02 / math.sqrt(16) if name.endswith("proj.weight") else 0.02
            assert float(p.detach().std()) == pytest.approx(std, rel=0.05), name
            assert abs(float(p.detach().mean())) < 0.05 * std + 4 * std / math.sqrt(p.numel()), name
    again = GPT2(model.config)
    again.init_weights(3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_dropout_acts_in_training_alone() -> None:
    config = GPT2Config(sequence_len=48, vocab_size=VOCAB, n_layer=1, n_head=2, n_embd=16, dropout=0.5)
    model, idx = random_model(config), ids(1, 20)
    assert torch.equal(model(idx), model(idx))
    model.train()
    assert not torch.equal(model(idx), model(idx))
    torch.manual_seed(5)
    first = model(idx)
    torch.manual_seed(5)
    assert torch.equal(model(idx), first)


def test_every_place_of_dropout_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings, attention weights, attention's and the MLP's output: p of each call."""
    config = GPT2Config(sequence_len=48, vocab_size=VOCAB, n_layer=2, n_head=2, n_embd=16, dropout=0.25)
    model, seen, attend, dropout = random_model(config).train(), [], F.scaled_dot_product_attention, F.dropout

    def attention(*args: Tensor, dropout_p: float, is_causal: bool) -> Tensor:
        seen.append(("attention", dropout_p))
        return attend(*args, dropout_p=dropout_p, is_causal=is_causal)

    def noted(x: Tensor, p: float, training: bool) -> Tensor:
        seen.append(("dropout", p * training))
        return dropout(x, p, training)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(F, "dropout", noted)
    model(ids(1, 20))
    assert seen == [("dropout", 0.25)] + [("attention", 0.25), ("dropout", 0.25), ("dropout", 0.25)] * 2


def test_bf16_activations_and_fp32_weights() -> None:
    model = random_model(SMALL).place(torch.device("cpu"), torch.bfloat16)
    assert model.hidden(ids(1, 9)).dtype == model.new_cache(1).keys[0].dtype == torch.bfloat16
    assert model(ids(1, 9)).dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_matrices_and_embeddings_decay_and_vectors_do_not() -> None:
    rates = GPT2(SMALL).optimizer_rates()
    assert rates["wte.weight"] == rates["wpe.weight"] == rates["blocks.0.attn.qkv.weight"] == DECAYED
    assert rates["ln_f.weight"] == rates["blocks.0.ln_1.bias"] == rates["blocks.1.mlp.fc.bias"] == VECTORS
    assert (DECAYED.lr, DECAYED.betas, DECAYED.weight_decay, VECTORS.weight_decay) == (6e-4, (0.9, 0.95), 0.1, 0.0)


def test_parameters_and_flops_of_gpt2() -> None:
    with torch.device("meta"):
        model = registry.build(registry.architecture("GPT2"))
    params = sum(p.numel() for p in model.parameters())
    assert params - 47 * 768 == 124_439_808  # as published, without the padding of 50,257 to 50,304
    matmul = 12 * 12 * 768**2 + 50_304 * 768
    assert model.flops_per_token() == 6 * matmul + 12 * 12 * 768 * 1024


def test_sizes_grow() -> None:
    assert all(a < b for small, large in pairwise(SIZES.values()) for a, b in zip(small, large, strict=True))


@pytest.mark.parametrize("wrong", [{"n_head": 5}, {"dropout": 1.0}, {"dropout": -0.1}, {"n_kv_head": 2}])
def test_impossible_architectures_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"n_embd 768|dropout is|has no size n_kv_head"):
        registry.architecture("GPT2", **wrong)
