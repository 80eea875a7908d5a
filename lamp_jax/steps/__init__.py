"""One pure update for each thing that is trained."""
