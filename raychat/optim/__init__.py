"""MuonAdamW: Muon for the blocks' matrices, AdamW for the rest, sharded over the workers."""

from raychat.optim.muon_adamw import MuonAdamW

__all__ = ["MuonAdamW"]
