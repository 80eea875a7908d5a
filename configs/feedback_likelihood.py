"""Feedback on single items by the reference's likelihood, from FLAN-T5-base on 8 TPU v5e chips.

One forward pass per question-item pair. `lamp merge` makes the file; paths are relative to where `lamp` runs.

Command:  lamp feedback items configs/feedback_likelihood.py
Hardware: 8 TPU v5e chips
Time:     not measured here
Score:    none: the page makes data
"""

from lamp_jax.options import Devices, FeedbackItems

experiment = FeedbackItems(
    task="LaMP-3",
    merged="runs/LaMP_3/train.json",
    model="google/flan-t5-base",
    output="runs/LaMP_3/feedback",
    reward="likelihood",
    batch_size=64,
    devices=Devices(sharding="data", dtype="bfloat16"),
)
