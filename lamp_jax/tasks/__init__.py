"""What is asked of a language model, and what is scored."""
