"""Numbers of hypothesis examples."""

from hypothesis import settings


def examples(number: int) -> int:
    """`number` in the profile `full`, as large a share of it in others as they have of its 100 examples."""
    return max(1, number * settings.default.max_examples // 100)
