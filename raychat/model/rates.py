"""The learning rates of the GPT, by parameter name."""

from fnmatch import fnmatchcase

from raychat.model.base import AdamW, Muon

# How parameters are updated: matrices in the blocks by Muon, all others by AdamW at these rates (nanochat, July 2026).
# The rates of large tables fall with the width; those of the last three do not grow with the batch.
MUON = Muon(0.02)
WIDTH_REF = 768  # for which the rates were tuned
WIDTH_SCALED = ("lm_head.weight", "wte.weight", "value_embeds.*.weight")  # lr times (n_embd / 768)^-0.5
ADAMW = {
    "lm_head.weight": AdamW(0.008, (0.8, 0.96), 0.01),
    "wte.weight": AdamW(0.3, (0.8, 0.995), 0.001),
    "value_embeds.*.weight": AdamW(0.15, (0.8, 0.995), 0.01),
    "resid_scale": AdamW(0.005, (0.8, 0.95), 0.05),
    "x0_scale": AdamW(0.5, (0.96, 0.95), 0.0),
    "smear_gate.weight": AdamW(0.2, (0.8, 0.95), 0.0, batch_scaled=False),
    "smear_lambda": AdamW(0.2, (0.8, 0.95), 0.0, batch_scaled=False),
    "backout_lambda": AdamW(0.2, (0.8, 0.95), 0.0, batch_scaled=False),
}


def rates_of(name: str, dim: int, n_embd: int) -> AdamW | Muon:
    """Return how the parameter `name` with `dim` dimensions is updated in a model of width `n_embd`.

    Raises:
        ValueError: The name is unknown.
    """
    if name.startswith("blocks.") and dim == 2:
        return MUON
    pattern = next((pattern for pattern in ADAMW if fnmatchcase(name, pattern)), None)
    if pattern is None:
        raise ValueError(
            f"no learning rate for parameter {name!r} of {dim} dimensions: expected a matrix named blocks.* (Muon) or "
            f"one of {', '.join(ADAMW)} (AdamW); name its rates in {__name__}"
        )
    rates = ADAMW[pattern]
    return rates._replace(lr=rates.lr * (n_embd / WIDTH_REF) ** -0.5) if pattern in WIDTH_SCALED else rates
