import math

import pytest

from raychat.train.scaling import from_depth

# Written out by hand from the recipe's rules (12 C^2 per layer + 12-wide gate rows + 32768 C; ratio 12).
D12_PARAMS = 12 * 12 * 768**2 + 6 * 6 * 12 + 32768 * 768


def test_d12_is_the_reference() -> None:
    d12 = from_depth(12)
    assert (d12.n_layer, d12.n_embd, d12.n_head, d12.head_dim) == (12, 768, 6, 128)
    assert d12.num_scaling_params == D12_PARAMS == 110_100_912
    assert (d12.batch_tokens, d12.steps, d12.lr_scale) == (2**19, 2520, 1.0)
    assert d12.weight_decay == pytest.approx(0.28)


@pytest.mark.parametrize(
    "depth, n_embd, n_head, params",
    [(20, 1280, 10, 435_160_240), (24, 1536, 12, 729_810_624), (26, 1664, 13, 918_423_532)],
)
def test_published_depths(depth: int, n_embd: int, n_head: int, params: int) -> None:
    made = from_depth(depth)
    assert (made.n_embd, made.n_head, made.head_dim) == (n_embd, n_head, 128)
    assert made.num_scaling_params == params
    assert made.batch_tokens == 2**20  # 2^19.76, 2^20.05, 2^20.17
    assert made.steps == round(12 * params / 2**20)
    assert made.lr_scale == pytest.approx(math.sqrt(2))
    assert made.weight_decay == pytest.approx(0.28 * math.sqrt(2) * D12_PARAMS / params)


def test_the_ratio_lengthens_the_run_and_changes_nothing_else() -> None:
    speedrun, default = from_depth(24, ratio=8), from_depth(24)
    assert speedrun.tokens == pytest.approx(default.tokens * 8 / 12, rel=1e-3)
    assert speedrun.weight_decay == pytest.approx(default.weight_decay)
    assert speedrun._replace(tokens=0, steps=0, weight_decay=0) == default._replace(tokens=0, steps=0, weight_decay=0)


def test_a_given_batch_scales_the_rates_by_its_root() -> None:
    half = from_depth(12, batch_tokens=2**18)
    assert half.lr_scale == pytest.approx(math.sqrt(0.5))
    assert half.weight_decay == pytest.approx(0.28 * math.sqrt(0.5))
    assert half.steps == 5040


def test_given_steps_keep_the_batch_and_set_the_tokens() -> None:
    twice = from_depth(12, steps=5040)
    assert (twice.batch_tokens, twice.tokens) == (2**19, 5040 * 2**19)
    assert twice.weight_decay == pytest.approx(0.14, rel=1e-4)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_tiny_models_are_finite_and_sensible(depth: int) -> None:
    for steps in (None, 1, 200):
        made = from_depth(depth, vocab_size=1000, sequence_len=256, batch_tokens=4096, steps=steps)
        assert (made.head_dim, made.n_head, made.n_embd) == (64, depth, depth * 64)
        assert 0 < made.weight_decay <= 1.0
        assert made.lr_scale == 0.4  # the square root of 1 / 128 is far too low
        assert made.steps >= 1
        assert made.tokens == made.steps * 4096


def test_the_batch_is_whole_rows() -> None:
    assert from_depth(12, sequence_len=1000).batch_tokens == 524_000
    assert from_depth(1, sequence_len=2**22, vocab_size=64).batch_tokens == 2**22


@pytest.mark.parametrize("depth, n_embd, head_dim", [(7, 448, 64), (8, 512, 128), (9, 640, 128), (13, 896, 128)])
def test_width_is_rounded_up_to_whole_heads(depth: int, n_embd: int, head_dim: int) -> None:
    assert (from_depth(depth).n_embd, from_depth(depth).head_dim) == (n_embd, head_dim)
    assert from_depth(9, head_dim=64).n_embd == 576


def test_a_width_of_its_own_is_whole_heads() -> None:
    made = from_depth(5, width=128)
    assert (made.n_layer, made.n_embd, made.n_head, made.head_dim) == (5, 128, 2, 64)
    with pytest.raises(ValueError, match="width must be a multiple of the head size 64, got 100"):
        from_depth(5, width=100)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of sequence_len 2048, got 5000: take 4096"):
        from_depth(12, batch_tokens=5000)
    with pytest.raises(ValueError, match="depth must be positive"):
        from_depth(0)
