"""The demo's RSPG-Post: a small Longformer that selects a question's retriever from its items and their answer.

Command:  lamp train-selector configs/demo_rspg_post.py --output runs/post
          (`lamp demo --stages selector` reads this page, and writes the files that it names)
Hardware: two CPU cores
Time:     not measured alone; all of `lamp demo --stages selector` took about 5 minutes
Score:    seed 0: accuracy 0.624, a best candidate selected for 0.813 of the questions (BM25 alone: 0.559 and 0.748)
"""

from lamp_jax.options import Learning, ScratchSelector, TrainSelector

experiment = TrainSelector(
    train="demo/selector/train/learn.json",
    validation="demo/selector/train/validation.json",
    output="demo/selector/post",
    mode="post",
    model="scratch",
    scratch=ScratchSelector(
        hidden_size=64, intermediate_size=128, num_layers=2, num_heads=8, vocab_size=1000, dropout=0.0
    ),
    temperature=0.5,
    max_length=112,  # four items and an answer, but only the first words of the question, which all candidates share
    learning=Learning(
        epochs=5.0, batch_size=8, learning_rate=1e-2, step_size="relative", weight_decay=0.0, evaluate_every=0.5
    ),
)
