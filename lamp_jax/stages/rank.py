"""`lamp rank`: ranking of every question's profile, for one file or for every file of a tree."""

from lamp_jax.options.retrieval import Rank
from lamp_jax.stages import rank_file, rank_tree


def run(options: Rank) -> None:
    rank_tree.run(options) if options.all else rank_file.run(options)
