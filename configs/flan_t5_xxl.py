"""FLAN-T5-XXL (11.1 billion parameters), fine-tuned on 16 TPU v5e chips in batches of 32.

Other settings are as in `flan_t5_base.py`. Parameters and optimizer state are sharded over all chips, with tensor
parallelism within groups of four, which reduces the communication; layers are computed again in the backward pass. For
generation and feedback, use tensor parallelism alone: `--sharding tensor --model-parallel 16`.

Command:  lamp train configs/flan_t5_xxl.py
Hardware: 16 TPU v5e chips
Time:     not measured here
Score:    not measured here
"""

from lamp_jax.options import Devices, Learning, Train

experiment = Train(
    task="LaMP-3",
    train="runs/LaMP_3/train.json",
    validation="runs/LaMP_3/dev.json",
    output="runs/LaMP_3/flan_t5_xxl",
    model="google/flan-t5-xxl",
    learning=Learning(epochs=10.0, batch_size=32, learning_rate=5e-5, warmup_ratio=0.05, weight_decay=1e-4),
    devices=Devices(sharding="fsdp+tensor", model_parallel=4, dtype="bfloat16", remat="full"),
)
