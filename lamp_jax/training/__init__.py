"""Training loops, their checkpoints, and the end of diverged runs."""
