"""Sources of benchmark files: downloads, archives, users' histories, synthesis; and checks of the files."""
