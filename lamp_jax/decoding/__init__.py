"""Tokens from a model: greedily, by beam search, or by scoring given labels."""
