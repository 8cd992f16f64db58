"""The models: token ids in, logits out."""
