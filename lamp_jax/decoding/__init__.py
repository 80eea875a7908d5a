"""Decoding of answers from a generator: greedy search, beam search, and scoring of given labels."""
