"""Retrieval of profile items: rankings of a profile for a question, and ranking files."""
