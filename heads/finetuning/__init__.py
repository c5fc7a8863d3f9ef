"""Training that goes back to the backbone: one loop, its batches, adapters, checkpoints and ranks."""
