"""A T5 of the demo's size from scratch on real users: MovieLens as LaMP-3, with prompts of three retrievers.

`lamp merge` makes the files from the questions and outputs of each split; paths are relative to where `lamp` runs.
A complete epoch would overfit: 0.8 epochs, and the best checkpoint on the dev file.

Command:  lamp train configs/movielens_lamp3.py
Hardware: two CPU cores
Time:     6 minutes 19 seconds
Score:    dev MAE 0.634 with BM25's items, 0.769 without a profile; figures depend on the processor
"""

from lamp_jax.options import Answering, Learning, Prompting, Scratch, Train

experiment = Train(
    task="LaMP-3",
    train="runs/movielens/train.json",
    validation="runs/movielens/dev.json",
    output="runs/movielens/model",
    model="scratch",
    scratch=Scratch(64, 128, num_layers=2, num_decoder_layers=1, num_heads=2, vocab_size=3000, dropout=0.0),
    retrievers=("recency", "bm25", "none"),
    prompting=Prompting(num_retrieved=12, max_length=256),
    profile_targets=3,
    learning=Learning(
        epochs=0.8,
        batch_size=32,
        learning_rate=2e-2,
        step_size="relative",
        warmup_ratio=0.1,
        weight_decay=0.0,
        evaluate_every=0.08,
    ),
    answering=Answering(decode="labels"),
)
