#!/usr/bin/env bash
# transformers: where the padding id is 0 (every T5's), `generate` pads a batch's finished answers with 0 in greedy search,
# but with </s> in beam search ("pad_token_id or eos_token_id", and a tensor that holds 0 is false). And a
# generation_config.json without eos_token_id takes config.json's away: no answer ends before the longest length.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import sys
import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
config = T5Config(vocab_size=16, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
model = T5ForConditionalGeneration(config)
model.save_pretrained("model")
ids = torch.tensor([[5, 6, 7, 1]])


def force(batch, scores):
    """The first source's answer is </s> at once, the second's continues to the longest length."""
    rows = len(scores) // 2
    scores[:rows, 1 if batch.shape[1] == 1 else 9] += 50
    scores[rows:, 9] += 50
    return scores


def generate(pad, beams):
    """The first source's answer, padded to the length of the second's."""
    model.generation_config.pad_token_id = pad
    return model.generate(ids.repeat(2, 1), num_beams=beams, max_length=5, logits_processor=[force])[0].tolist()


greedy, beam, other = generate(0, 1), generate(0, 2), generate(3, 2)
print("transformers", transformers.__version__)
print("padding id 0, greedy:", greedy)
print("padding id 0, beam search:", beam)
print("padding id 3, beam search:", other)
assert json.load(open("model/config.json"))["eos_token_id"] == 1
file = {"decoder_start_token_id": 0, "pad_token_id": 0, "forced_bos_token_id": 1}
json.dump(file, open("model/generation_config.json", "w"))
endless = T5ForConditionalGeneration.from_pretrained("model").generate(ids, max_length=6)[0].tolist()
print("no eos_token_id in generation_config.json, </s> (1) as the first token:", endless)
as_seen = greedy == [0, 1, 0, 0, 0] and beam == [0, 1, 1, 1, 1] and other == [0, 1, 3, 3, 3]
sys.exit(0 if as_seen and endless[1] == 1 and len(endless) == 6 else 1)
PY
