"""The demo's generator: a small T5 trained from scratch, on the prompts of four retrievers.

Command:  lamp train configs/demo_generator.py (`lamp demo` reads this page, and writes the files that it names)
Hardware: two CPU cores
Time:     not measured alone; all of `lamp demo` took 1 minute 46 seconds
Score:    seed 0, accuracy with the items of none 0.237, random 0.325, recency 0.387, bm25 0.559; figures depend on the
          processor
"""

from lamp_jax.options import Answering, Learning, Prompting, Scratch, Train

experiment = Train(
    task="LaMP-2",
    train="demo/train.json",
    validation="demo/dev.json",
    output="demo/model",
    model="scratch",
    scratch=Scratch(
        d_model=64, d_ff=128, num_layers=2, num_decoder_layers=1, num_heads=2, vocab_size=1000, dropout=0.0
    ),
    retrievers=("none", "random", "recency", "bm25"),
    prompting=Prompting(num_retrieved=4, max_length=192),
    learning=Learning(
        epochs=2.0,
        batch_size=16,
        learning_rate=2e-2,
        step_size="relative",
        warmup_ratio=0.1,
        weight_decay=0.0,
        evaluate_every=0.5,
    ),
    validation_size=200,
    answering=Answering(decode="labels"),
)
