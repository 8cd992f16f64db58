"""The GPT: cache = no cache, causality, windows, both generations, initial values."""

import math

import pytest
import torch

from raychat.model import flops
from raychat.model.gpt import GPT, GPTConfig

SMALL = GPTConfig(sequence_len=512, vocab_size=300, n_layer=5, n_head=4, n_kv_head=2, n_embd=64)


def random_model(config: GPTConfig) -> GPT:
    """A model whose every part matters: the real initial weights are zero in places."""
    model = GPT(config)
    model.init_weights()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "proj" in name or "lambda" in name or "lm_head" in name:
                p.normal_(std=0.3)
    return model.eval()


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, SMALL.vocab_size, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "config",
    [SMALL, GPTConfig.october_2025(sequence_len=512, vocab_size=300, n_layer=3, n_head=4, n_kv_head=4, n_embd=64)],
)
@torch.no_grad()
def test_cache_gives_the_same_logits(config: GPTConfig) -> None:
    model, idx = random_model(config), ids(3, 200)
    slots, cache = torch.tensor([4, 0, 2]), model.new_cache(6)
    pieces = [slice(0, 150), slice(150, 151), slice(151, 152), slice(152, 200)]
    cached = torch.cat([model(idx[:, p], cache.at(slots)) for p in pieces], dim=1)
    torch.testing.assert_close(cached, model(idx), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_cache_slots_of_different_lengths_do_not_touch_each_other() -> None:
    model, idx = random_model(SMALL), ids(2, 60)
    cache = model.new_cache(3)
    model(idx[:1, :40], cache.at(torch.tensor([2])))
    model(idx[1:, :7], cache.at(torch.tensor([0])))
    cache.copy(0, 1)
    last = model(torch.stack((idx[0, 40], idx[1, 7], idx[1, 7]))[:, None], cache.at(torch.tensor([2, 0, 1])))[:, 0]
    torch.testing.assert_close(last[0], model(idx[:1, :41])[0, -1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last[1], model(idx[1:, :8])[0, -1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last[2], last[1])


@torch.no_grad()
def test_a_reset_slot_starts_anew() -> None:
    model, idx = random_model(SMALL), ids(1, 20)
    cache, slot = model.new_cache(1), torch.tensor([0])
    first = model(idx, cache.at(slot))
    cache.reset(0)
    torch.testing.assert_close(model(idx, cache.at(slot)), first)


def test_full_cache_says_so() -> None:
    cache = random_model(SMALL).new_cache(1, max_len=8)
    with pytest.raises(ValueError, match="8 tokens; 9 more do not fit"):
        cache.at(torch.tensor([0])).positions(9)


@torch.no_grad()
def test_the_future_does_not_matter() -> None:
    model, idx = random_model(SMALL), ids(1, 50)
    changed = idx.clone()
    changed[0, 30:] = 7
    torch.testing.assert_close(model(idx)[:, :30], model(changed)[:, :30])


@torch.no_grad()
def test_only_windows_see_far_back() -> None:
    config = GPTConfig(
        sequence_len=512, vocab_size=300, n_layer=1, n_head=2, n_kv_head=2, n_embd=64, smear=False, backout=False
    )
    model = random_model(config)
    model.blocks[0].attn.window = 128
    idx = ids(1, 300)
    changed = idx.clone()
    changed[0, 100] = (idx[0, 100] + 1) % 300
    same = (model(idx) - model(changed)).abs().amax(-1)[0] < 1e-6
    assert same[:100].all()
    assert not same[100:229].any()  # its own position and 128 to the right see position 100
    assert same[229:].all()


def test_window_pattern_is_tiled_and_the_last_layer_is_long() -> None:
    assert GPTConfig(n_layer=6, sequence_len=2048).windows() == [512, 512, 512, 2048, 512, 2048]
    assert GPTConfig(n_layer=2, sequence_len=256).windows() == [128, 256]  # a quarter, rounded up to 128


def test_value_embeddings_are_on_every_second_layer_from_the_last() -> None:
    assert [i for i in range(5) if SMALL.has_value_embedding(i)] == [0, 2, 4]


def test_october_2025_has_none_of_the_later_parts() -> None:
    model = GPT(GPTConfig.october_2025(sequence_len=64, vocab_size=300, n_layer=2, n_head=2, n_kv_head=2, n_embd=64))
    leaves = {name.split(".")[-2] for name, _ in model.named_parameters()}
    assert leaves == {"wte", "lm_head", "q", "k", "v", "proj", "fc"}


def test_initial_weights_follow_the_recipe() -> None:
    model = GPT(GPTConfig(vocab_size=4096, n_layer=4, n_head=4, n_kv_head=4, n_embd=256))
    model.init_weights()
    s = math.sqrt(3 / 256)
    block = model.blocks[0]
    assert model.wte.weight.std().item() == pytest.approx(0.8, rel=0.01)
    assert model.lm_head.weight.std().item() == pytest.approx(0.001, rel=0.01)
    assert block.attn.q.weight.abs().max().item() == pytest.approx(s, rel=0.01)
    assert block.mlp.fc.weight.abs().max().item() == pytest.approx(0.4 * s, rel=0.01)
    assert not block.attn.proj.weight.any()
    assert not block.mlp.proj.weight.any()
    assert model.resid_scale.tolist() == pytest.approx([1.15, 1.15 - 0.1 / 3, 1.15 - 0.2 / 3, 1.05])
    assert model.x0_scale.tolist() == pytest.approx([0.20, 0.15, 0.10, 0.05])


def test_initial_loss_is_that_of_a_uniform_guess() -> None:
    model = GPT(SMALL)
    model.init_weights()
    assert model(ids(1, 16)).abs().max() < 0.1


def test_flops_per_token_by_hand() -> None:
    config = GPTConfig(
        sequence_len=512, vocab_size=128, n_layer=2, n_head=2, n_kv_head=2, n_embd=64, window_pattern="SL", smear=False
    )
    matmul = 2 * 12 * 64 * 64 + 128 * 64 + 12 * 2  # blocks, lm_head, one gate
    assert flops.per_token(GPT(config)) == 6 * matmul + 12 * 2 * 32 * (128 + 512)


@pytest.mark.parametrize(
    "wrong",
    [{"n_head": 5}, {"n_kv_head": 4}, {"window_pattern": "SX"}, {"window_pattern": ""}],
)
def test_impossible_architectures_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GPTConfig(**wrong)
