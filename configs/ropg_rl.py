"""ROPG-RL as in its paper: as `ropg_kd.py`, but with REINFORCE.

One item is sampled per question; the baseline is the untuned retriever's first item.

Command:  lamp train-retriever configs/ropg_rl.py
Hardware: 8 TPU v5e chips
Time:     not measured here
Score:    not measured here
"""

from lamp_jax.options import Learning, TrainRetriever

experiment = TrainRetriever(
    task="LaMP-3",
    questions="runs/LaMP_3/train_contriever.json",
    feedback=("runs/LaMP_3/train_feedback",),
    validation="runs/LaMP_3/dev_contriever.json",
    validation_feedback=("runs/LaMP_3/dev_feedback",),
    output="runs/LaMP_3/ropg_rl",
    method="rl",
    gradient="sampled",
    sampled_items=1,
    encoder="facebook/contriever",
    profile_size=16,
    use_date=True,
    max_length=512,
    learning=Learning(
        epochs=10.0, batch_size=64, accumulation=8, learning_rate=1e-5, warmup_ratio=0.05, weight_decay=0.0, clip=1.0
    ),
)
