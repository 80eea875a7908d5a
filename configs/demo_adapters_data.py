"""The demo's users for adapters: 240 that are not in its generator's training data, with 2 to 200 items.

Command:  lamp synth configs/demo_adapters_data.py (`lamp demo --stages adapters` reads this page)
Hardware: one CPU core
Time:     not measured alone; all of `lamp demo --stages adapters` took 4 minutes of CPU time
Score:    none: the page makes data
"""

from lamp_jax.options import Synth

experiment = Synth(task="LaMP-2", output="demo/adapters/data", questions=1, dev_questions=240, profile_sizes=(2, 200))
