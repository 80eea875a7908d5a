"""The training loops, their checkpoints, and what ends them."""
