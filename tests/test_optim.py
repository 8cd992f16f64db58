import copy
import math
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from raychat.model.gpt2 import GPT2, GPT2Config
from raychat.model.rates import rates_of
from raychat.optim import build_optimizer
from raychat.optim.muon_adamw import MuonAdamW
from raychat.optim.shards import Slot
from raychat.optim.updates import POLAR_STEPS, adamw_, equilibrated, muon_, polar, rescaled

DIM = 32
SHAPES = {  # odd counts, so that no number of workers divides them all
    "wte.weight": (523, DIM),
    "lm_head.weight": (523, DIM),
    "value_embeds.1.weight": (600, DIM),
    "smear_gate.weight": (1, 24),
    "smear_lambda": (1,),
    "backout_lambda": (1,),
    "resid_scale": (2,),
    "x0_scale": (2,),
    **{f"blocks.{i}.attn.{name}.weight": (DIM, DIM) for i in range(2) for name in ("q", "k", "v", "proj")},
    **{f"blocks.{i}.mlp.fc.weight": (4 * DIM, DIM) for i in range(2)},
    **{f"blocks.{i}.mlp.proj.weight": (DIM, 4 * DIM) for i in range(2)},
    "blocks.1.attn.ve_gate.weight": (2, 12),
}
MAX_NORM, SCALES = 300.0, (1.0, 0.25, 4.0)  # the second gradient's norm is below
SCHEDULE = [(1.0, 0.85, 1.0), (0.7, 0.9, 0.5), (0.3, 0.95, 0.0)]  # lr, momentum, weight decay


def make(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    embeddings = ("wte", "value_embeds")
    return {
        name: nn.Parameter(
            (0.2 * torch.randn(shape, generator=draw)).to(dtype if name.startswith(embeddings) else torch.float32)
        )
        for name, shape in SHAPES.items()
    }


def set_grads(params: dict[str, nn.Parameter], step: int, rank: int = 0, size: int = 1) -> None:
    """Give every worker its share of the step's gradients, in 64ths so that sums are exact in any order."""
    draw = torch.Generator().manual_seed(100 + step)
    for p in params.values():
        whole = torch.randint(-200, 201, p.shape, generator=draw) / 64
        others = torch.randint(-200, 201, (size - 1, *p.shape), generator=torch.Generator().manual_seed(step)) / 64
        p.grad = (others[rank] if rank < size - 1 else whole - others.sum(0)).to(p.dtype)


def build(
    params: dict[str, nn.Parameter],
    lr_scale: float = 0.5,
    weight_decay: float = 0.3,
    **options: Any,
) -> MuonAdamW:
    rates = {name: rates_of(name, p.dim(), DIM) for name, p in params.items()}
    return MuonAdamW(params.items(), rates, lr_scale=lr_scale, weight_decay=weight_decay, **options)


def train(
    params: dict[str, nn.Parameter],
    optimizer: MuonAdamW,
    steps: range,
    rank: int = 0,
    size: int = 1,
    scales: Sequence[float] = (1.0,),
) -> None:
    """scales: of the gradients, whose norm is 503, in one step after the other."""
    for step in steps:
        set_grads(params, step, rank, size)
        for p in params.values():
            p.grad *= scales[step % len(scales)]
        optimizer.step(*SCHEDULE[step % len(SCHEDULE)])
        optimizer.zero_grad()


# AdamW


def test_adamw_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 50, 20).unbind()
    theirs = nn.Parameter(ours.clone())
    mean, square = torch.zeros_like(ours), torch.zeros_like(ours)
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.8, 0.96), eps=1e-10, weight_decay=0.1)
    for step in range(1, 11):
        theirs.grad = torch.randn_like(theirs)
        reference.step()
        adamw_(ours, theirs.grad, mean, square, step=step, lr=0.01, betas=(0.8, 0.96), weight_decay=0.1)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)  # the order of additions differs


def gpt2_and_optimizers(
    rates: dict[str, float] | None,
) -> tuple[GPT2, MuonAdamW, torch.optim.AdamW, GPT2]:
    """A GPT-2 and our optimizer, and PyTorch's with a copy of the model. rates: None = those of GPT-2."""
    adamw = rates or {"lr": 6e-4, "beta2": 0.95, "weight_decay": 0.1}
    ours = GPT2(GPT2Config(sequence_len=16, vocab_size=300, n_layer=2, n_head=2, n_embd=64))
    ours.init_weights()
    theirs = copy.deepcopy(ours)
    groups = [[p for p in theirs.parameters() if (p.dim() > 1) == decays] for decays in (True, False)]
    reference = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": adamw["weight_decay"]}, {"params": groups[1], "weight_decay": 0.0}],
        lr=adamw["lr"],
        betas=(0.9, adamw["beta2"]),
        eps=1e-8,
    )
    return ours, build_optimizer(ours, lr_scale=1.0, weight_decay=0.0, adamw=rates), reference, theirs


@pytest.mark.parametrize("rates", [None, {"lr": 2e-3, "beta2": 0.8, "weight_decay": 0.5}])
@pytest.mark.parametrize("weight", [1e-3, 30.0])  # the gradient's norm is below and above 1
def test_gpt2_is_trained_as_by_pytorch_with_its_gradient_clipped(weight: float, rates: dict[str, float] | None) -> None:
    ours, optimizer, reference, theirs = gpt2_and_optimizers(rates)
    for step in range(3):
        idx = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(step))
        for model in (ours, theirs):
            (weight * model.nll(idx[:, :-1], idx[:, 1:]).mean()).backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        assert (norm > 1) == (weight > 1)
        reference.step()
        reference.zero_grad()
        optimizer.step(lr=1.0)
        optimizer.zero_grad()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        pairs = [(p, q)]
        if name.endswith("qkv.bias"):  # softmax does not see the keys' bias: its gradient is rounding alone
            pairs = [(a, b) for i, (a, b) in enumerate(zip(p.chunk(3), q.chunk(3), strict=True)) if i != 1]
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)  # the order of additions differs


# Each rate, as the recipe has it: lr, betas, weight decay, whether lr scales with (width / 768)^-0.5. The last three do
# not scale with the batch.
RECIPE = {
    "lm_head.weight": (0.008, (0.8, 0.96), 0.01, True),
    "wte.weight": (0.3, (0.8, 0.995), 0.001, True),
    "value_embeds.1.weight": (0.15, (0.8, 0.995), 0.01, True),
    "resid_scale": (0.005, (0.8, 0.95), 0.05, False),
    "x0_scale": (0.5, (0.96, 0.95), 0.0, False),
    "smear_gate.weight": (0.2, (0.8, 0.95), 0.0, False),
    "smear_lambda": (0.2, (0.8, 0.95), 0.0, False),
    "backout_lambda": (0.2, (0.8, 0.95), 0.0, False),
}

UNSCALED = ("smear_gate.weight", "smear_lambda", "backout_lambda")


def test_every_other_parameter_is_updated_by_adamw_at_its_rate() -> None:
    ours, theirs = make(), make()
    optimizer = build(ours)
    groups = [
        {
            "params": [theirs[name]],
            "lr": lr * ((DIM / 768) ** -0.5 if by_width else 1) * (1.0 if name in UNSCALED else 0.5),
            "betas": betas,
            "weight_decay": decay,
        }
        for name, (lr, betas, decay, by_width) in RECIPE.items()
    ]
    reference = torch.optim.AdamW(groups, eps=1e-10)
    rates = [group["lr"] for group in groups]
    for step, (lr, momentum, decay) in enumerate(SCHEDULE):
        set_grads(ours, step)
        set_grads(theirs, step)
        optimizer.step(lr, momentum, decay)
        for group, rate in zip(reference.param_groups, rates, strict=True):
            group["lr"] = rate * lr
        reference.step()
    for name in RECIPE:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_bf16_embeddings_move_as_float32_ones_to_rounding() -> None:
    exact, rounded = make(), make(torch.bfloat16)
    for params in (exact, rounded):
        train(params, build(params), range(1))
    assert rounded["wte.weight"].dtype == torch.bfloat16
    # two roundings of values below 2: the initial one and the result's
    torch.testing.assert_close(rounded["wte.weight"].float(), exact["wte.weight"].detach(), rtol=2**-8, atol=2**-8)


# Muon


def slow_muon(p: Tensor, grads: list[Tensor], lr: float, momenta: list[float], decays: list[float]) -> Tensor:
    """The recipe's section on Muon, read off line by line: one matrix, float64, the second moment one row at a time."""
    p = p.double().clone()
    R, C = p.shape
    m = torch.zeros_like(p)
    lines = R if R >= C else C
    second = torch.zeros(lines, dtype=torch.float64)
    for grad, mu, decay in zip(grads, momenta, decays, strict=True):
        g = grad.double()
        m = mu * m + (1 - mu) * g
        u = (1 - mu) * g + mu * m
        row_norms = [float(row.pow(2).sum().sqrt()) for row in u]
        u = torch.stack([row / norm * (sum(row_norms) / R) for row, norm in zip(u, row_norms, strict=True)])
        x = u if R <= C else u.T
        x = x / (1.01 * x.pow(2).sum().sqrt() + 1e-6)
        for a, b, c in POLAR_STEPS:
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        u = x if R <= C else x.T
        u = u * math.sqrt(min(R, C)) / u.pow(2).sum().sqrt()
        norm = u.pow(2).sum().sqrt()
        for i in range(lines):
            line = u[i] if R >= C else u[:, i]
            second[i] = 0.9 * second[i] + 0.1 * line.pow(2).mean()
        u = u / (second.sqrt()[:, None] if R >= C else second.sqrt()[None, :])
        u = u * norm / u.pow(2).sum().sqrt()
        rate = lr * math.sqrt(max(1, R / C))
        for i in range(R):
            for j in range(C):
                shrink = decay * p[i, j] if u[i, j] * p[i, j] >= 0 else 0.0
                p[i, j] -= rate * (u[i, j] + shrink)
    return p


@pytest.mark.parametrize("shape", [(8, 8), (32, 8), (8, 32), (2, 12), (1, 12)])
def test_muon_is_the_recipes(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    stack, steps = torch.randn(3, *shape), [torch.randn(3, *shape) for _ in SCHEDULE]
    ours, (R, C) = stack.clone(), shape
    buffer, variance = torch.zeros_like(stack), torch.zeros((3, R, 1) if R >= C else (3, 1, C))
    for grad, (_, momentum, decay) in zip(steps, SCHEDULE, strict=True):
        muon_(ours, grad, buffer, variance, lr=0.1, momentum=momentum, weight_decay=0.3 * decay)
    for i in range(3):
        expected = slow_muon(
            stack[i], [grad[i] for grad in steps], 0.1, [s[1] for s in SCHEDULE], [0.3 * s[2] for s in SCHEDULE]
        )
        # float32 through five polynomial steps that amplify rounding by up to 8 each
        torch.testing.assert_close(ours[i].double(), expected, rtol=1e-3, atol=1e-4)


def test_muon_multiplies_in_the_dtype_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    stack, grad = torch.randn(2, 3, 64, 128)
    moves = []
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setenv("RAYCHAT_DTYPE", dtype)
        p, variance = stack.clone(), torch.zeros(3, 1, 128)
        muon_(p, grad, torch.zeros_like(p), variance, lr=0.1, momentum=0.9, weight_decay=0.0)
        moves.append(p - stack)
    exact, rounded = moves
    assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()  # 2^-8 a product, three products in each of five steps


def test_block_matrices_are_updated_by_muon() -> None:
    params = make()
    before = {name: p.detach().clone() for name, p in params.items()}
    optimizer = build(params)
    set_grads(params, 0)
    grads = {name: p.grad for name, p in params.items()}
    optimizer.step(1.0, 0.85, 1.0)
    for name in [name for name in params if name.startswith("blocks.1.")]:
        expected = slow_muon(before[name], [grads[name]], 0.02 * 0.5, [0.85], [0.3])  # type: ignore[list-item]
        torch.testing.assert_close(params[name].detach().double(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("multiplier", [0.0, 0.5, 1.0])
def test_muons_decay_is_cautious_and_follows_the_schedule(multiplier: float) -> None:
    """A step with decay, beside one without from the same weights and gradients."""
    before, plain, decayed = make(), make(), make()
    for params, decay in ((plain, 0.0), (decayed, multiplier)):
        set_grads(params, 0)
        build(params).step(0.7, 0.85, decay)
    for name, p in before.items():
        if not name.startswith("blocks."):
            assert decayed[name].equal(plain[name]), name  # AdamW's decay is its own
            continue
        rate = 0.02 * 0.5 * 0.7 * math.sqrt(max(1, p.size(0) / p.size(1)))
        shrinks = (p - plain[name]) * p >= 0  # the update takes p towards zero
        assert 0.2 < shrinks.float().mean() < 0.8
        expected = plain[name] - rate * 0.3 * multiplier * p * shrinks
        # two roundings of values below 1, beside a decay of about 4e-4
        torch.testing.assert_close(decayed[name], expected, rtol=0, atol=2.5e-7)


def test_without_gradients_only_the_decay_moves_parameters() -> None:
    params, before = make(), make()
    optimizer = build(params)
    for lr, momentum, decay in SCHEDULE:
        optimizer.step(lr, momentum, decay)
    for name, p in params.items():
        kept = 1.0
        for lr, _, decay in SCHEDULE:
            if name in RECIPE:
                rate, _, own_decay, by_width = RECIPE[name]
                kept *= 1 - 0.5 * lr * rate * ((DIM / 768) ** -0.5 if by_width else 1) * own_decay
            else:
                kept *= 1 - 0.5 * lr * 0.02 * math.sqrt(max(1, p.size(0) / p.size(1))) * 0.3 * decay
        # three steps of two roundings each; the least decay is 2.5e-4 of the value
        torch.testing.assert_close(p.detach(), kept * before[name].detach(), rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("shape", [(64, 64), (128, 32), (32, 128)])
def test_polar_brings_singular_values_near_one_and_keeps_the_vectors(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    U, S, Vh = torch.linalg.svd(torch.randn(4, *shape), full_matrices=False)
    norm = S.norm(dim=-1, keepdim=True)
    values = S.double() / (1.01 * norm + 1e-6)
    for a, b, c in POLAR_STEPS:
        values = a * values + b * values**3 + c * values**5
    result = polar(U @ torch.diag_embed(S) @ Vh)
    # float32 through five polynomial steps, each amplifying rounding by up to 8
    torch.testing.assert_close(result, U @ torch.diag_embed(values.float()) @ Vh, rtol=1e-3, atol=1e-3)
    assert values[S / norm > 2e-3].min() > 0.85
    assert values.max() < 1.15


@pytest.mark.parametrize("norm", [0.0, 1e-9, 1e-6])
def test_polar_of_a_vanishing_matrix_stays_bounded(norm: float) -> None:
    x = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.linalg.matrix_norm(polar(rescaled(x, norm)), ord=2).max() < 1.15


def test_polar_in_bf16_is_that_in_float32_to_rounding() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64, 128)
    difference = polar(x, torch.bfloat16) - polar(x)
    assert difference.norm() < 0.05 * polar(x).norm()  # 2^-8 a product, three products in each of five steps


def test_equilibration_and_rescaling_keep_zeros() -> None:
    x = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [0.6, 0.8]]])
    torch.testing.assert_close(equilibrated(x), torch.tensor([[[1.2, 1.6], [0.0, 0.0], [1.2, 1.6]]]))
    assert rescaled(x, 7.0).norm().item() == pytest.approx(7.0)
    assert equilibrated(torch.zeros_like(x)).equal(torch.zeros_like(x))
    assert rescaled(torch.zeros_like(x), 7.0).equal(torch.zeros_like(x))


# The optimizer


def test_matrices_without_gradient_stay_and_stay_finite() -> None:
    params = make()
    before = {name: p.detach().clone() for name, p in params.items()}
    build(params, 1.0, 0.0).step()
    for name, p in params.items():
        assert p.isfinite().all(), name
        if name.startswith("blocks."):
            assert p.equal(before[name]), name


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'wpe.weight' of 2 dimensions"):
        rates_of("wpe.weight", 2, 4)
    with pytest.raises(ValueError, match=r"'blocks.0.bias'"):
        rates_of("blocks.0.bias", 1, 4)
    with pytest.raises(ValueError, match=r"no learning rates for the parameters 1 \(wpe.weight\)"):
        MuonAdamW([("wpe.weight", nn.Parameter(torch.zeros(8, 4)))], {})


def test_frozen_and_compiled_parameters_keep_their_places() -> None:
    params = make()
    params["wte.weight"].requires_grad_(False)
    optimizer = MuonAdamW(
        [(f"_orig_mod.{name}", p) for name, p in params.items()],
        {name: rates_of(name, p.dim(), DIM) for name, p in params.items()},
    )
    before = params["wte.weight"].clone()
    train(params, optimizer, range(1))
    assert params["wte.weight"].equal(before)
    assert "lm_head.weight/mean/0" in optimizer.state()
    assert not any(key.startswith("wte") for key in optimizer.state())


def test_a_small_regression_is_learnt() -> None:
    torch.manual_seed(0)
    weight, target = nn.Parameter(torch.zeros(16, 16)), torch.randn(16, 16) / 4
    optimizer = build({"blocks.0.attn.q.weight": weight}, 1.0, 0.0)
    for step in range(300):
        ((weight - target) ** 2).sum().backward()
        optimizer.step(lr=1 - step / 300)
        optimizer.zero_grad()
    assert (weight - target).norm() < 0.02 * target.norm()


# Workers


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train three steps with 3 and with 2 workers; the 2 then take over the state of the 3 and save it again."""
    folder = tmp_path_factory.mktemp("runs")
    get_context("forkserver").set_forkserver_preload(["raychat.optim"])  # one import of torch for all workers
    for size in (3, 2):
        mp.start_processes(_worker, (size, folder), nprocs=size, start_method="forkserver")
    return folder


def _worker(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store-{size}", rank=rank, world_size=size
    )
    params = make()
    optimizer = build(params)
    train(params, optimizer, range(3), rank, size)
    torch.save({name: p.detach() for name, p in params.items()}, folder / f"weights-{size}-{rank}.pt")
    torch.save(optimizer.state(), folder / f"state-{size}-{rank}.pt")
    params = make()
    rounding = build(params, matrices_read_as=torch.bfloat16)
    train(params, rounding, range(3), rank, size)
    torch.save({name: p.detach() for name, p in params.items()}, folder / f"rounded-{size}-{rank}.pt")
    rounding.send_exact()
    torch.save({name: p.detach() for name, p in params.items()}, folder / f"exact-{size}-{rank}.pt")
    params = make()
    train(params, build(params, max_grad_norm=MAX_NORM), range(3), rank, size, SCALES)
    torch.save({name: p.detach() for name, p in params.items()}, folder / f"clipped-{size}-{rank}.pt")
    if size == 2:
        optimizer.load_state(pieces(folder, "state-3"))
        torch.save(optimizer.state(), folder / f"moved-2-{rank}.pt")
    torch.distributed.destroy_process_group()


def pieces(folder: Path, name: str) -> dict[str, Tensor]:
    """Merge what all workers saved; no two of them may save the same piece."""
    saved = [torch.load(path) for path in sorted(folder.glob(f"{name}-*.pt"))]
    merged = {key: piece for part in saved for key, piece in part.items()}
    assert len(merged) == sum(map(len, saved))
    return merged


@pytest.mark.parametrize("size", [2, 3])
def test_workers_give_the_result_of_one(size: int, runs: Path) -> None:
    params = make()
    train(params, build(params), range(3))
    got = [torch.load(runs / f"weights-{size}-{rank}.pt") for rank in range(size)]
    for name, p in params.items():
        for other in got[1:]:
            assert other[name].equal(got[0][name]), name  # every worker holds the same bits
        if name.startswith("blocks."):
            # matrix products may be taken in another order; five polynomial steps amplify that
            torch.testing.assert_close(got[0][name], p.detach(), rtol=1e-4, atol=1e-5)
        else:
            # a range of rows may meet other vector kernels, which round multiply-adds otherwise: 2^-24 each
            torch.testing.assert_close(got[0][name], p.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", [2, 3])
def test_workers_scale_the_gradient_down_as_one(size: int, runs: Path) -> None:
    params, unclipped = make(), make()
    train(params, build(params, max_grad_norm=MAX_NORM), range(3), scales=SCALES)
    train(unclipped, build(unclipped), range(3), scales=SCALES)
    for rank in range(size):
        got = torch.load(runs / f"clipped-{size}-{rank}.pt")
        for name, p in params.items():
            torch.testing.assert_close(got[name], p.detach(), rtol=1e-4, atol=1e-5)
    assert (params["wte.weight"] - unclipped["wte.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("size", [2, 3])
def test_matrices_of_other_workers_are_rounded_until_they_are_sent_exactly(size: int, runs: Path) -> None:
    """Each is exact on the one worker that updates it, also in the steps that follow; everything else always is."""
    expected = torch.load(runs / f"weights-{size}-0.pt")
    rounded = [torch.load(runs / f"rounded-{size}-{rank}.pt") for rank in range(size)]
    for name, p in expected.items():
        num_exact = sum(weights[name].equal(p) for weights in rounded)
        assert num_exact == (1 if name.startswith("blocks.") else size), name
        assert all(weights[name].bfloat16().equal(p.bfloat16()) for weights in rounded)
    for rank in range(size):
        exact = torch.load(runs / f"exact-{size}-{rank}.pt")
        assert all(exact[name].equal(p) for name, p in expected.items())


def test_state_moves_between_any_numbers_of_workers_bit_by_bit(runs: Path) -> None:
    """From 3 to 2 to 1; then 3's own pieces are the rows of 1's."""
    one = build(make())
    one.load_state(pieces(runs, "moved-2"))
    assert one.num_steps == 3
    state = one.state()
    for key, piece in pieces(runs, "state-3").items():
        name, _, row = key.rpartition("/")
        assert state[f"{name}/0"][int(row) : int(row) + len(piece)].equal(piece), key
    assert state["wte.weight/mean/0"].shape == SHAPES["wte.weight"]
    assert state["blocks.0.mlp.fc.weight/variance/0"].shape == (4 * DIM, 1)
    assert "wte.weight/mean/262" in torch.load(runs / "moved-2-1.pt")  # the second of two workers has the second half


def test_every_worker_owns_its_share_of_the_state(runs: Path) -> None:
    sizes = [sum(t.numel() for t in torch.load(runs / f"state-3-{rank}.pt").values()) for rank in range(3)]
    assert max(sizes) < 1.25 * sum(sizes) / 3


def test_resumed_is_uninterrupted_bit_by_bit() -> None:
    straight = make()
    optimizer = build(straight)
    train(straight, optimizer, range(2))
    resumed = {name: nn.Parameter(p.detach().clone()) for name, p in straight.items()}
    state = optimizer.state()
    train(straight, optimizer, range(2, 5))
    second = build(resumed)
    second.load_state(state)  # also: the copies in `state` were not touched by the steps since
    train(resumed, second, range(2, 5))
    assert all(resumed[name].equal(straight[name]) for name in straight)


def test_only_pieces_that_hold_own_rows_are_read() -> None:
    rows = torch.zeros(4, 2)
    pieces = {"p/mean/4": torch.arange(8.0).view(4, 2), "p/mean/8": torch.full((8, 2), 9.0)}  # "p/mean/0" is elsewhere
    Slot("p/mean", rows, first_row=4, num_rows=16).fill(pieces, [0, 4, 8])
    assert rows.equal(pieces["p/mean/4"])
    Slot("p/mean", rows, first_row=6, num_rows=16).fill(pieces, [0, 4, 8])
    assert rows.tolist() == [[4, 5], [6, 7], [9, 9], [9, 9]]


def test_state_that_does_not_fit_is_refused() -> None:
    optimizer = build(make())
    state = optimizer.state()

    def without(*keys: str) -> dict[str, Tensor]:
        return {key: piece for key, piece in state.items() if key not in keys}

    with pytest.raises(ValueError, match=r"1 \(wte.weight/mean\) missing, none unknown"):
        optimizer.load_state(without("wte.weight/mean/0"))
    with pytest.raises(ValueError, match=r"none missing, 1 \(wpe.weight/mean\) unknown"):
        optimizer.load_state({**state, "wpe.weight/mean/0": torch.zeros(2)})
    with pytest.raises(ValueError, match="expected keys"):
        optimizer.load_state({**state, "model.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"wte.weight/mean: rows 0 to 7 are missing"):
        optimizer.load_state({**without("wte.weight/mean/0"), "wte.weight/mean/7": torch.zeros(516, DIM)})
    with pytest.raises(ValueError, match="expected rows 0 to 523"):
        optimizer.load_state({**state, "wte.weight/mean/0": torch.zeros(500, DIM)})
    with pytest.raises(ValueError, match=r"of shape \(32,\), got \(523, 64\)"):
        optimizer.load_state({**state, "wte.weight/mean/0": torch.zeros(523, 2 * DIM)})
