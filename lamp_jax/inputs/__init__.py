"""From questions to fixed-shape numpy batches."""
