"""Personalizing language models from a user's own history, in JAX."""

__version__ = "0.1.0"
