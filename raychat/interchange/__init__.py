"""Checkpoints of nanochat, nanoGPT and transformers: read into runs, and written from them."""
