"""ROPG-KD as in its paper: Contriever is trained on FLAN-T5's feedback on the first 16 items of its own ranking.

The paper's settings (arXiv 2404.05970, section 6.1): Adam at 1e-5, linear schedule with 5 % warm-up, 10 epochs of 64
questions per update, dates in the documents. `lamp feedback items` collects the feedback on questions that were merged
with Contriever's ranking; paths are relative to where `lamp` runs.

Command:  lamp train-retriever configs/ropg_kd.py
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
    output="runs/LaMP_3/ropg_kd",
    method="kd",
    encoder="facebook/contriever",
    profile_size=16,
    use_date=True,
    max_length=512,
    learning=Learning(
        epochs=10.0, batch_size=64, accumulation=8, learning_rate=1e-5, warmup_ratio=0.05, weight_decay=0.0, clip=1.0
    ),
)
