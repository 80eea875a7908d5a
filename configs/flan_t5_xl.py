"""FLAN-T5-XL (2.85 billion parameters) fine-tuned on 8 TPU v5e chips; settings as in `flan_t5_base.py`.

Parameters and optimizer state are sharded over the chips (FSDP); layers are computed again in the backward pass. For
generation and feedback, use tensor parallelism instead: `--sharding tensor --model-parallel 8`.

Command:  lamp train configs/flan_t5_xl.py
Hardware: 8 TPU v5e chips
Time:     not measured here
Score:    not measured here
"""

from lamp_jax.options import Devices, Learning, Train

experiment = Train(
    task="LaMP-3",
    train="runs/LaMP_3/train.json",
    validation="runs/LaMP_3/dev.json",
    output="runs/LaMP_3/flan_t5_xl",
    model="google/flan-t5-xl",
    learning=Learning(epochs=10.0, batch_size=64, learning_rate=5e-5, warmup_ratio=0.05, weight_decay=1e-4),
    devices=Devices(sharding="fsdp", dtype="bfloat16", remat="full"),
)
