"""The training loop: trainer, step, gradients, SAM, mixing, losses, checkpoints."""
