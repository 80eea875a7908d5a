"""The demo's ROPG-KD: a small encoder trained from scratch on the softmax of the rewards.

Command:  lamp train-retriever configs/demo_ropg_kd.py --output runs/kd
          (`lamp demo --stages retriever` reads this page, and writes the files that it names)
Hardware: two CPU cores
Time:     not measured alone; all of `lamp demo --stages retriever` took about 3 minutes
Score:    seed 0, after ranking and generating: accuracy 0.651, on hidden users 0.667
          (untrained encoder: 0.491 and 0.293)
"""

from lamp_jax.options import Learning, ScratchEncoder, TrainRetriever

experiment = TrainRetriever(
    task="LaMP-2",
    questions="demo/train.json",
    feedback=("demo/retriever/feedback",),
    output="demo/retriever/kd",
    method="kd",
    encoder="scratch",
    scratch=ScratchEncoder(
        hidden_size=64, intermediate_size=128, num_layers=1, num_heads=2, vocab_size=1000, dropout=0.0
    ),
    reward="metric",
    profile_size=16,
    use_date=False,
    max_length=64,
    learning=Learning(epochs=4.0, batch_size=32, learning_rate=2e-2, step_size="relative", weight_decay=0.0),
)
