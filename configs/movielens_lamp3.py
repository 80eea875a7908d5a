"""A small T5 from scratch on real users: MovieLens as LaMP-3, the user's last twelve ratings in the prompt.

`lamp merge` makes the files from the questions and outputs of each split; paths are relative to where `lamp` runs.
"""

from lamp_jax.config import Answering, Prompting, Scratch, Train

experiment = Train(
    task="LaMP-3",
    train="runs/movielens/train.json",
    validation="runs/movielens/dev.json",
    output="runs/movielens/recency",
    model="scratch",
    scratch=Scratch(d_model=128, d_ff=256, num_layers=2, num_decoder_layers=1, num_heads=4, vocab_size=3000),
    retrievers=("recency",),
    prompting=Prompting(num_retrieved=12, max_length=256),
    profile_targets=20,
    epochs=5,
    batch_size=64,
    learning_rate=1e-3,
    weight_decay=0.01,
    evaluate_every=0.25,
    patience=6,
    answering=Answering(decode="labels"),
)
