"""Step time of MuonAdamW against torch.optim.Muon + torch.optim.AdamW on the same parameters, in one process.

    .venv/bin/python benchmarks/optim.py [depth]

The optimizers take turns, step by step; times are medians. The last line is JSON. On a CPU torch's Muon multiplies in
bf16, ours in fp32.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from raychat import device as devices
from raychat.model.gpt import GPT, GPTConfig
from raychat.optim import build_optimizer
from raychat.train.scaling import from_depth

WARMUP_STEPS, STEPS = 2, 7


def main(depth: int | None = None) -> None:
    """Time the optimizers on a model of `depth` blocks; None = 12 on a GPU, 4 on a CPU."""
    device = devices.default_device()
    depth = depth or (12 if device.type == "cuda" else 4)
    sizes = from_depth(depth)
    config = GPTConfig(n_layer=depth, n_head=sizes.n_head, n_kv_head=sizes.n_head, n_embd=sizes.n_embd)
    torch.manual_seed(0)

    def with_gradients() -> GPT:
        model = GPT(config)
        model.init_weights()
        model.to(device)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        return model

    def parameters() -> dict[str, Tensor]:
        return dict(with_gradients().named_parameters())

    contenders: dict[str, Callable[[], object]] = {
        "muon_adamw": build_optimizer(with_gradients(), lr_scale=1.0, weight_decay=0.28).step,
        "torch_muon_adamw": torch_muon_adamw(parameters()),
        "torch_adamw": torch.optim.AdamW(parameters().values()).step,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for step in range(WARMUP_STEPS + STEPS):
        for name, run in contenders.items():
            devices.synchronize(device)
            start = time.perf_counter()
            run()
            devices.synchronize(device)
            if step >= WARMUP_STEPS:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    on_cuda = device.type == "cuda"
    result = {
        "benchmark": "optim",
        "device": torch.cuda.get_device_name(device) if on_cuda else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "depth": depth,
        "num_params": sum(p.numel() for p in with_gradients().parameters()),
        "step_ms": {name: round(1000 * median, 2) for name, median in medians.items()},
        "ratio_to": {
            name: round(medians["muon_adamw"] / median, 3) for name, median in medians.items() if name != "muon_adamw"
        },
    }
    for name, median in medians.items():
        print(f"{name:18} {1000 * median:9.2f} ms a step")
    print(json.dumps(result))


def torch_muon_adamw(params: dict[str, Tensor]) -> Callable[[], None]:
    """Return a step of torch's pair: Muon for the matrices of the blocks, AdamW for the rest."""
    matrices = [p for name, p in params.items() if name.startswith("blocks.")]
    rest = [p for name, p in params.items() if not name.startswith("blocks.")]
    muon, adamw = torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest)

    def step() -> None:
        muon.step()
        adamw.step()

    return step


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
