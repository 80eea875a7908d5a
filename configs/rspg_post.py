"""RSPG-Post as in its paper: Longformer is trained to select one of six retrievers from FLAN-T5's answers with each.

The paper's settings (arXiv 2404.05970, section 6.1): Adam at 1e-5, linear schedule with 5 % warm-up, 20 epochs of 64
questions per update, 1,024 tokens. `lamp selector-data` makes the files; for RSPG-Pre add `--mode pre`. Paths are
relative to where `lamp` runs.

Command:  lamp train-selector configs/rspg_post.py
Hardware: 8 TPU v5e chips
Time:     not measured here
Score:    not measured here
"""

from lamp_jax.options import Learning, TrainSelector

experiment = TrainSelector(
    train="runs/LaMP_3/train_candidates.json",
    validation="runs/LaMP_3/dev_candidates.json",
    output="runs/LaMP_3/rspg_post",
    mode="post",
    model="allenai/longformer-base-4096",
    temperature=1.0,
    max_length=1024,
    learning=Learning(
        epochs=20.0, batch_size=64, accumulation=8, learning_rate=1e-5, warmup_ratio=0.05, weight_decay=0.0, clip=1.0
    ),
)
