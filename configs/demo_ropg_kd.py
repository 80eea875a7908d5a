"""The demo's ROPG-KD, to be changed: `lamp train-retriever configs/demo_ropg_kd.py --output runs/kd --epochs 8`.

`lamp demo --stages retriever` makes the files that it reads.
"""

from lamp_jax.options import Demo
from lamp_jax.stages.demo import training
from lamp_jax.stages.demo_retriever import trainings

experiment = trainings(Demo(), training(Demo()))["ropg-kd"]
