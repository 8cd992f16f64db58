"""Measure models: bits per byte, CORE, and the chat tasks. Plain PyTorch; raychat.cluster spreads it over actors."""
