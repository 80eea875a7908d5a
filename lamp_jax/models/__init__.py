"""The models, and the letters that name an array's axes everywhere above the waterline.

B batch, S source tokens, T target tokens, D hidden, H heads, K head size, F feed-forward, V vocabulary,
L layers (or labels, where the docstring says so), N profile items, R retrievers, U users.
"""
