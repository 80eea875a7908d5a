"""Where a benchmark's files come from: downloads, archives, users' histories, synthesis; and their checks."""
