"""The demo's adapters: one for each of 240 users, trained on the user's own items alone.

Command:  lamp train-adapters configs/demo_adapters.py (`lamp demo --stages adapters` reads this page, and writes the
          files that it names)
Hardware: two CPU cores
Time:     not measured alone; all of `lamp demo --stages adapters` took 4 minutes of CPU time
Score:    seed 0: accuracy 0.596 with the bare question, 0.517 with BM25's items (without adapters: 0.225 and 0.508)
"""

from lamp_jax.options import Lora, Optimization, TrainAdapters

experiment = TrainAdapters(
    task="LaMP-2",
    questions="demo/adapters/questions.json",
    output="demo/adapters/store",
    model="demo/model",
    users_per_step=48,
    lora=Lora(rank=8, alpha=32.0, targets=("q", "k", "v"), dropout=0.0),
    learning=Optimization(epochs=10.0, batch_size=16, learning_rate=3e-3),
    tokens_per_device=2048,
    max_length=192,
)
