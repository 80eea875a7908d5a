"""The demo's RSPG-Post, to be changed: `lamp train-selector configs/demo_rspg_post.py --output runs/post --epochs 8`.

`lamp demo --stages selector` makes the files that it reads.
"""

from lamp_jax.options import Demo
from lamp_jax.stages.demo_selector import trainings

experiment = trainings(Demo())["post"]
