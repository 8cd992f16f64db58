"""The tiny real things that tests are made of: tokenizer, model, token shards."""

import numpy as np

from raychat import tokens
from raychat.model import GPT, GPTConfig
from raychat.tokenizer import SPECIAL_TOKENS, Tokenizer

VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
CONFIG = GPTConfig(sequence_len=32, vocab_size=VOCAB_SIZE, n_layer=2, n_head=2, n_kv_head=2, n_embd=32)


def byte_tokenizer() -> Tokenizer:
    """The tokenizer without merges: every byte is a token."""
    return Tokenizer([bytes([i]) for i in range(256)])


def model(config: GPTConfig = CONFIG, seed: int = 0) -> GPT:
    built = GPT(config)
    built.init_weights(seed)
    return built


def token_folder(folder: str, *, num_rows: int = 40, num_blocks: int = 2, masked: bool = False, seed: int = 0) -> str:
    """Write token shards whose rows are learnable: every row counts up from a random start."""
    generator = np.random.default_rng(seed)
    T = CONFIG.sequence_len
    tokens.write_plan(folder, tokens.Plan(num_blocks, T, VOCAB_SIZE, masked, inputs=f"counting-{seed}"))
    for block in range(num_blocks):
        n = num_rows // num_blocks
        rows = ((generator.integers(0, 64, (n, 1)) + np.arange(T + 1)) % 128).astype(np.uint16)
        mask = (generator.random(rows.shape) < 0.4).astype(np.uint16)
        tokens.write_block(folder, block, np.stack((rows, mask), axis=1) if masked else rows)
    return folder
