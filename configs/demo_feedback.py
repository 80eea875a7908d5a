"""The demo's feedback on items, on which its retrievers are trained: answers to train questions with one item alone.

Command:  lamp feedback items configs/demo_feedback.py (`lamp demo --stages retriever` reads this page)
Hardware: two CPU cores
Time:     not measured alone; all of `lamp demo --stages retriever` took about 3 minutes
Score:    none: the page makes data
"""

from lamp_jax.options import Answering, FeedbackItems

experiment = FeedbackItems(
    task="LaMP-2",
    merged="demo/train.json",
    model="demo/model",
    output="demo/retriever/feedback",
    profile_size=16,
    reward="metric",
    batch_size=64,
    max_length=128,
    answering=Answering(decode="labels"),
)
