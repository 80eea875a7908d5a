"""The demo's ROPG-RL, to be changed; see `demo_ropg_kd.py`."""

from lamp_jax.options import Demo
from lamp_jax.stages.demo import training
from lamp_jax.stages.demo_retriever import trainings

experiment = trainings(Demo(), training(Demo()))["ropg-rl"]
