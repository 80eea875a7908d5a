"""The demo's benchmark: 2,000 train and 1,000 dev questions with known relevant profile items.

Command:  lamp synth configs/demo_data.py (`lamp demo` reads this page)
Hardware: one CPU core
Time:     not measured alone; all of `lamp demo` took 1 minute 46 seconds on two CPU cores
Score:    none: the page makes data
"""

from lamp_jax.options import Synth

experiment = Synth(task="LaMP-2", output="demo/data", questions=2000, dev_questions=1000, profile_size=24)
