"""The GPT against the recipe written out in float64 and against transformers; caches, windows, initial values."""

import math
from collections.abc import Mapping

import pytest
import torch
from tiny import extend
from torch import Tensor

from raychat.model.convert import nanochat_from_transformers, nanochat_to_transformers
from raychat.model.gpt import GPT, GPTConfig
from raychat.model.loss import token_nll

SMALL = GPTConfig(sequence_len=512, vocab_size=300, n_layer=5, n_head=4, n_kv_head=2, n_embd=64)
# Both parities of the number of layers: the middle, value embeddings and windows lie elsewhere. 256 tokens: S is 128.
EVEN = GPTConfig(sequence_len=256, vocab_size=300, n_layer=6, n_head=4, n_kv_head=2, n_embd=32)
ODD = GPTConfig(sequence_len=256, vocab_size=300, n_layer=3, n_head=4, n_kv_head=2, n_embd=32, window_pattern="SL")
OCTOBER = GPTConfig.october_2025(sequence_len=64, vocab_size=300, n_layer=3, n_head=4, n_kv_head=2, n_embd=64)


def random_model(config: GPTConfig) -> GPT:
    """A model whose every part matters: no weight is left at zero, no gate near its middle, no logit below the cap."""
    model = GPT(config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:  # scalars: away from 0 and from 1
                p.uniform_(0.3, 0.9, generator=draw)
            else:
                std = {"wte.weight": 1.0, "lm_head.weight": 8 / math.sqrt(config.n_embd)}
                p.normal_(std=std.get(name, 0.5 if "gate" in name else p.size(1) ** -0.5), generator=draw)
    return model.eval()


def ids(*shape: int) -> Tensor:
    return torch.randint(0, SMALL.vocab_size, shape, generator=torch.Generator().manual_seed(0))


# Truth


def recipe(config: GPTConfig, weights: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """The recipe's section on the model, read off line by line: one sequence, float64, one query at a time.

    Of the config it takes sizes and the window pattern only: the numbers are the recipe's.
    """
    L, H, K, D = config.n_layer, config.n_head, config.n_kv_head, config.n_embd // config.n_head
    T = len(tokens)
    short = math.ceil(config.sequence_len / 4 / 128) * 128

    def norm(x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 2**-23).sqrt()

    def sigmoid(x: Tensor) -> Tensor:
        return 1 / (1 + (-x).exp())

    def heads(x: Tensor) -> Tensor:
        """Queries or keys (T, heads, D): turned by minus theta, halves not interleaved, then normed and scaled."""
        theta = torch.tensor(
            [[t * 100_000 ** (-2 * j / D) for j in range(D // 2)] for t in range(T)], dtype=torch.float64
        )
        theta = theta.unsqueeze(1)
        a, b = x[..., : D // 2], x[..., D // 2 :]
        return 1.2 * norm(torch.cat((a * theta.cos() + b * theta.sin(), -a * theta.sin() + b * theta.cos()), -1))

    embedded = norm(weights["wte.weight"][tokens])
    rows = [embedded[0]]
    for t in range(1, T):
        gate = sigmoid(embedded[t, :24] @ weights["smear_gate.weight"][0])
        rows.append(embedded[t] + weights["smear_lambda"] * gate * embedded[t - 1])
    x = x0 = middle = torch.stack(rows)
    for i in range(L):
        part = {n.removeprefix(f"blocks.{i}."): w for n, w in weights.items() if n.startswith(f"blocks.{i}.")}
        x = weights["resid_scale"][i] * x + weights["x0_scale"][i] * x0
        y = norm(x)
        q, k, v = ((y @ part[f"attn.{name}.weight"].T).unflatten(-1, (-1, D)) for name in ("q", "k", "v"))
        if (L - 1 - i) % 2 == 0:
            gate = 3 * sigmoid(y[:, :12] @ part["attn.ve_gate.weight"].T)
            v = v + gate[:, :, None] * weights[f"value_embeds.{i}.weight"][tokens].view(T, K, D)
        letter = "L" if i == L - 1 else config.window_pattern[i % len(config.window_pattern)]
        window = short if letter == "S" else T
        q, k = heads(q), heads(k).repeat_interleave(H // K, dim=1)  # neighbouring query heads share a key head
        v = v.repeat_interleave(H // K, dim=1)
        seen = []
        for t in range(T):
            past = slice(max(0, t - window), t + 1)
            scores = torch.einsum("hd,shd->hs", q[t], k[past]) / math.sqrt(D)
            seen.append(torch.einsum("hs,shd->hd", scores.softmax(-1), v[past]))
        x = x + torch.stack(seen).view(T, H * D) @ part["attn.proj.weight"].T
        x = x + (norm(x) @ part["mlp.fc.weight"].T).clamp(min=0).pow(2) @ part["mlp.proj.weight"].T
        if i == L // 2:
            middle = x
    x = x - weights["backout_lambda"] * middle
    logits = norm(x) @ weights["lm_head.weight"][: config.vocab_size].T
    return 15 * (logits / 15).tanh()


def doubled(model: GPT) -> dict[str, Tensor]:
    return {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}


@pytest.mark.parametrize("config, T", [(EVEN, 40), (ODD, 150)], ids=["even", "longer than a window"])
def test_logits_and_gradients_are_the_recipes(config: GPTConfig, T: int) -> None:
    """Every entry of every gradient, against autograd of the recipe in float64."""
    model, idx, targets = random_model(config), ids(1, T + 1)[:, :-1], ids(1, T + 1)[:, 1:]
    weights, loss_weights = doubled(model), torch.linspace(0.5, 1.5, T)
    logits, expected = model(idx), recipe(config, weights, idx[0])
    assert logits.abs().max() > 12  # the cap matters
    # float32: 2^-24 for each operation, amplified by the layers' norms
    torch.testing.assert_close(logits[0].double(), expected, rtol=1e-4, atol=1e-4)
    (token_nll(logits, targets)[0] * loss_weights).sum().backward()
    nll = -expected.log_softmax(-1)[torch.arange(T), targets[0]]
    (nll * loss_weights).sum().backward()
    for name, p in model.named_parameters():
        truth = weights[name].grad
        assert truth is not None
        assert p.grad is not None, name
        assert truth.norm() > 0.01, f"{name} does not matter"
        assert (p.grad - truth).norm() < 1e-4 * truth.norm(), name


@torch.no_grad()
def test_prefill_and_decode_are_the_recipes() -> None:
    """Past a window of 128, in slots out of order, beside a sequence that begins with one token."""
    model, idx = random_model(ODD), ids(2, 140)
    cache, rows = model.new_cache(3), idx.tolist()
    extend(model, cache, [], {1: rows[0][:128]})
    extend(model, cache, [rows[1][0]], {1: rows[0][128:131]})
    steps = [extend(model, cache, [rows[1][1 + i], rows[0][131 + i]], {}) for i in range(4)]
    last = extend(model, cache, [], {1: rows[0][135:], 0: rows[1][5:10]})  # several at once
    cached = torch.cat((torch.stack(steps, 1), last.view(2, 5, -1).flip(0)), dim=1).flip(0)
    weights = doubled(model)
    for row, n in ((0, 140), (1, 10)):
        expected = recipe(ODD, weights, idx[row, :n])[-9:]
        torch.testing.assert_close(cached[row].double(), expected, rtol=1e-4, atol=1e-4)  # as above


@pytest.fixture(scope="module")
def transformers_model() -> tuple[GPT, torch.nn.Module]:
    """The first generation here, and transformers' NanoChat with the same weights."""
    from transformers import NanoChatConfig, NanoChatForCausalLM

    ours = random_model(OCTOBER)
    theirs = NanoChatForCausalLM(
        NanoChatConfig(
            vocab_size=OCTOBER.vocab_size,
            hidden_size=OCTOBER.n_embd,
            intermediate_size=4 * OCTOBER.n_embd,
            num_hidden_layers=OCTOBER.n_layer,
            num_attention_heads=OCTOBER.n_head,
            num_key_value_heads=OCTOBER.n_kv_head,
            max_position_embeddings=OCTOBER.sequence_len,
            rms_norm_eps=2**-23,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()
    theirs.load_state_dict(nanochat_to_transformers(ours))
    return ours, theirs


@torch.no_grad()
def test_first_generation_is_transformers_nanochat(transformers_model: tuple[GPT, torch.nn.Module]) -> None:
    ours, theirs = transformers_model
    idx = ids(2, 64)
    torch.testing.assert_close(ours(idx), theirs(idx).logits, rtol=1e-4, atol=1e-4)  # fp32 sums in another order


@pytest.mark.parametrize("cached", [False, True])
@torch.no_grad()
def test_greedy_continuation_is_transformers(transformers_model: tuple[GPT, torch.nn.Module], cached: bool) -> None:
    ours, theirs = transformers_model
    prompt = ids(2, 9)
    expected = theirs.generate(prompt, max_new_tokens=30, do_sample=False, use_cache=cached)
    idx, cache = prompt, ours.new_cache(2)
    if cached:
        extend(ours, cache, [], {slot: row[:-1] for slot, row in enumerate(prompt.tolist())})
    for _ in range(30):
        logits = extend(ours, cache, idx[:, -1].tolist(), {}) if cached else ours(idx)[:, -1]
        idx = torch.cat((idx, logits.argmax(-1, keepdim=True)), dim=1)
    assert idx.tolist() == expected.tolist()
    assert len(set(idx[0].tolist())) > 20  # no loop of a few tokens


def test_weights_come_back_from_transformers_as_they_were(transformers_model: tuple[GPT, torch.nn.Module]) -> None:
    ours, theirs = transformers_model
    back, own = nanochat_from_transformers(theirs.state_dict(), ours), ours.state_dict()
    for name, tensor in own.items():
        if name in ("wte.weight", "lm_head.weight"):
            tensor[OCTOBER.vocab_size :] = 0  # the padding
        assert torch.equal(back[name], tensor), name


# Causality, windows


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
    """Every parameter's distribution; bounds are five standard errors of its mean and of its standard deviation."""
    config = GPTConfig(vocab_size=2000, n_layer=4, n_head=4, n_kv_head=2, n_embd=256)
    model, s = GPT(config), math.sqrt(3 / 256)
    model.init_weights()
    uniform = {
        **dict.fromkeys(("attn.q.", "attn.k.", "attn.v.", "value_embeds"), (-s, s)),
        "mlp.fc": (-0.4 * s, 0.4 * s),
        "gate": (0.0, 0.02),
    }
    normal = {"wte": 0.8, "lm_head": 0.001}
    exact = {
        "proj": [0.0],
        "smear_lambda": [0.0],
        "backout_lambda": [0.2],
        "resid_scale": [1.15, 1.15 - 0.1 / 3, 1.15 - 0.2 / 3, 1.05],
        "x0_scale": [0.20, 0.15, 0.10, 0.05],
    }
    for name, p in model.named_parameters():
        (kind,) = (key for key in [*uniform, *normal, *exact] if key in name)
        if kind in exact:
            torch.testing.assert_close(p.detach(), torch.tensor(exact[kind]).expand(p.shape), msg=name)
            continue
        low, high = uniform.get(kind, (-math.inf, math.inf))
        assert low <= p.min(), name
        assert p.max() <= high, name
        mean, std = ((low + high) / 2, (high - low) / math.sqrt(12)) if kind in uniform else (0.0, normal[kind])
        error = 5 * std / math.sqrt(p.numel())
        assert p.mean().item() == pytest.approx(mean, abs=error), name
        assert p.std().item() == pytest.approx(std, abs=error), name
        if kind in normal:
            assert p.abs().max() > 4 * std, name  # a uniform distribution ends at 1.73


@pytest.mark.parametrize("n_layer, resid, x0", [(1, [1.15], [0.20]), (2, [1.15, 1.05], [0.20, 0.05])])
def test_initial_scalars_of_few_layers(n_layer: int, resid: list[float], x0: list[float]) -> None:
    model = GPT(GPTConfig(sequence_len=64, vocab_size=64, n_layer=n_layer, n_head=1, n_kv_head=1, n_embd=64))
    model.init_weights()
    assert model.resid_scale.tolist() == pytest.approx(resid)
    assert model.x0_scale.tolist() == pytest.approx(x0)


def test_seed_gives_the_same_initial_weights() -> None:
    first, again, other = GPT(SMALL), GPT(SMALL), GPT(SMALL)
    first.init_weights(seed=3)
    torch.rand(5)  # the global generator plays no part
    again.init_weights(seed=3)
    other.init_weights(seed=4)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.wte.weight, other.wte.weight)
    assert not torch.equal(first.blocks[0].attn.q.weight, first.blocks[1].attn.q.weight)


@torch.no_grad()
def test_placed_in_bf16_it_computes_in_bf16_and_keeps_float32_weights() -> None:
    exact, placed = random_model(SMALL), random_model(SMALL).place(torch.device("cpu"), torch.bfloat16)
    rounded = {name for name, p in placed.named_parameters() if p.dtype == torch.bfloat16}
    assert rounded == {name for name, _ in placed.named_parameters() if name.startswith(("wte", "value_embeds"))}
    idx, cache = ids(1, 60), placed.new_cache(1)
    assert cache.keys[0].dtype == torch.bfloat16
    logits = placed(idx)
    assert logits.dtype == torch.float32
    # 8 bits of mantissa through five layers: a tenth of the logits' size
    assert (logits - exact(idx)).norm() < 0.1 * exact(idx).norm()
    cached = extend(placed, cache, [], {0: idx[0].tolist()})
    torch.testing.assert_close(cached, logits[0], rtol=0.1, atol=0.5)  # two bf16 passes


def test_initial_loss_is_that_of_a_uniform_guess() -> None:
    model = GPT(SMALL)
    model.init_weights()
    assert model(ids(1, 16)).abs().max() < 0.1


def test_flops_per_token_by_hand() -> None:
    config = GPTConfig(
        sequence_len=512, vocab_size=128, n_layer=2, n_head=2, n_kv_head=2, n_embd=64, window_pattern="SL", smear=False
    )
    matmul = 2 * 12 * 64 * 64 + 128 * 64 + 12 * 2  # blocks, lm_head, one gate
    assert GPT(config).flops_per_token() == 6 * matmul + 12 * 2 * 32 * (128 + 512)


@pytest.mark.parametrize(
    "wrong",
    [{"n_head": 5}, {"n_kv_head": 4}, {"window_pattern": "SX"}, {"window_pattern": ""}],
)
def test_impossible_architectures_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GPTConfig(**wrong)
