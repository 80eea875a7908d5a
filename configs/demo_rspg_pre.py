"""The demo's RSPG-Pre, to be changed; see `demo_rspg_post.py`."""

from lamp_jax.options import Demo
from lamp_jax.stages.demo_selector import trainings

experiment = trainings(Demo())["pre"]
