#!/usr/bin/env bash
# CTranslate2's conversion of a T5 v1.1 (FLAN-T5) that transformers 5 opens: CTranslate2 4.8.5, transformers 5.23.0.
#
# transformers 5 sets tie_word_embeddings to True in every T5 configuration and keeps what the file says in
# scale_decoder_outputs: logits of a configuration with False are not scaled. CTranslate2's converter reads
# tie_word_embeddings, and scales the decoder's output by d_model^-0.5. Greedy answers stay the same; scores, and with
# them beam search and the ranking of candidates, are those of a far flatter distribution.
#
# Exit status 1: the behaviour changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 ctranslate2==4.8.5
cat >"$folder/logits.py" <<'PYTHON'
import sys
from importlib.metadata import version

import ctranslate2
import torch
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

folder = sys.argv[1]
words = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(3, 64))]
tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)

torch.manual_seed(0)
sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
config = T5Config(
    **sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0
)
model = T5ForConditionalGeneration(config).eval()
model.save_pretrained(folder)
TransformersConverter(folder).convert(f"{folder}/converted")

labels = torch.tensor([[11, 20, 1]])
with torch.no_grad():
    logits = model(input_ids=torch.tensor([[5, 9, 7, 1]]), labels=labels).logits


def likelihoods(factor):
    return torch.log_softmax(logits * factor, -1)[0, range(3), labels[0]]


converted = ctranslate2.Translator(f"{folder}/converted")
found = torch.tensor(converted.score_batch([["w5", "w9", "w7", "</s>"]], [["w11", "w20"]])[0].log_probs)
print("transformers", version("transformers"), "ctranslate2", version("ctranslate2"))
print("tie_word_embeddings=False is", config.tie_word_embeddings, "and scale_decoder_outputs", config.scale_decoder_outputs)
print("log-probabilities: transformers", likelihoods(1).tolist(), "ctranslate2", found.tolist())
scaled = torch.allclose(found, likelihoods(32**-0.5), atol=1e-3)
sys.exit(not (config.tie_word_embeddings and scaled and not torch.allclose(found, likelihoods(1), atol=1e-1)))
PYTHON
"$folder/venv/bin/python" "$folder/logits.py" "$folder/model" 2>/dev/null
