"""Fixed-shape numpy batches from questions."""
