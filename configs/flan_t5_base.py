"""FLAN-T5-base fine-tuned on prompts with the user's history, on 8 TPU v5e chips.

The public code's optimizer settings (AdamW at 5e-5, linear schedule with 5 % warm-up, weight decay 1e-4, 10 epochs,
beam 4) with 512 tokens and batches of 64. Parameters and optimizer state are sharded over the chips (FSDP): a replica
on each would read and write all of AdamW's state there. `lamp merge` makes the files; paths are relative to where
`lamp` runs.

Command:  lamp train configs/flan_t5_base.py
Hardware: 8 TPU v5e chips
Time:     not measured here
Score:    not measured here
"""

from lamp_jax.options import Devices, Learning, Train

experiment = Train(
    task="LaMP-3",
    train="runs/LaMP_3/train.json",
    validation="runs/LaMP_3/dev.json",
    output="runs/LaMP_3/flan_t5_base",
    model="google/flan-t5-base",
    learning=Learning(epochs=10.0, batch_size=64, learning_rate=5e-5, warmup_ratio=0.05, weight_decay=1e-4),
    devices=Devices(sharding="fsdp", dtype="bfloat16"),
)
