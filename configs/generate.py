"""Answers of a FLAN-T5 model by beam search (beam 4), weights in bfloat16, for Colab's single v5e chip.

`lamp merge` makes the file; paths are relative to where `lamp` runs. FLAN-T5-XL fits with `--model google/flan-t5-xl
--batch-size 4`.

Command:  lamp generate configs/generate.py
Hardware: one TPU v5e chip (Colab)
Time:     not measured here
Score:    not measured here
"""

from lamp_jax.options import Devices, Generate

experiment = Generate(
    task="LaMP-3",
    questions="runs/LaMP_3/dev.json",
    model="google/flan-t5-base",
    output="runs/LaMP_3/dev_predictions.json",
    batch_size=16,
    storage="bfloat16",
    devices=Devices(dtype="bfloat16"),
)
