"""Scripts of launch/ on simulated machines."""
