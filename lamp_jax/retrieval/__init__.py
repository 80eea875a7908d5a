"""Which profile items are read: rankings of a profile for a question, and the files that hold them."""
