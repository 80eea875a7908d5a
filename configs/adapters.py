"""A LoRA adapter for every user with the paper's settings (arXiv 2409.09510), on 8 TPU v5e chips.

Rank 8 on q, k and v, alpha 32, dropout 0.1; AdamW at 5e-5 with a linear schedule and 5 % warm-up, weight decay 1e-4, 30
epochs in batches of 16. Cohorts of 64 users, with microbatches of about 4,096 tokens for each chip's 8 users. For
FLAN-T5-XL and -XXL shard the base model: `--sharding fsdp --storage bfloat16 --remat full`.

Command:  lamp train-adapters configs/adapters.py
Hardware: 8 TPU v5e chips
Time:     not measured here
Score:    not measured here
"""

from lamp_jax.options import Devices, Lora, Optimization, TrainAdapters

experiment = TrainAdapters(
    task="LaMP-3",
    questions="runs/LaMP_3/dev.json",
    output="runs/LaMP_3/adapters",
    model="google/flan-t5-base",
    profiles="first",
    lora=Lora(rank=8, alpha=32.0, targets=("q", "k", "v"), dropout=0.1),
    learning=Optimization(epochs=30.0, batch_size=16, learning_rate=5e-5, warmup_ratio=0.05, weight_decay=1e-4),
    target_length=128,
    devices=Devices(sharding="data", dtype="bfloat16"),
)
