"""Numbers of hypothesis examples."""

from hypothesis import settings


def examples(number: int) -> int:
    """`number` in the profile `full`; in other profiles, scaled by their number of examples out of 100."""
    return max(1, number * settings.default.max_examples // 100)
