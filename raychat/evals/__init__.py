"""What a model is worth: bits per byte, CORE, and the chat tasks. Plain PyTorch; raychat.cluster fans it out."""
