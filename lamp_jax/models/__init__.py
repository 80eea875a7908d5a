"""Models. Their docstrings name the axes of arrays by letters:

B batch, S source tokens, T target tokens, D hidden size, H heads, K head size, F feed-forward size, V vocabulary,
L layers (or labels, where the docstring says so), N profile items, R retrievers, U users.
"""
