#!/usr/bin/env bash
# sentence-transformers: `encode_document` says that it takes the first prompt there is of "document", "passage" and
# "corpus". Every model is given an empty prompt "document" when it is loaded, so that an encoder whose saved prompts are
# "query" and "passage" (the names that E5's cards give) embeds its documents without any prompt, and nothing is said.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys
import numpy as np
import sentence_transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from transformers import BertConfig, BertModel, BertTokenizer

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", "passage", ":", "hello", "world"]
open("vocab.txt", "w").write("\n".join(words))
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained("bert")
BertTokenizer("vocab.txt").save_pretrained("bert")
parts = [modules.Transformer("bert"), modules.Pooling(16, "mean")]
SentenceTransformer(modules=parts, prompts={"query": "query: ", "passage": "passage: "}, device="cpu").save("e5")
import json
config = json.load(open("e5/config_sentence_transformers.json"))
config["prompts"] = {"query": "query: ", "passage": "passage: "}  # as encoders published before release 5 have them
json.dump(config, open("e5/config_sentence_transformers.json", "w"))

model = SentenceTransformer("e5", device="cpu")
document = model.encode_document(["hello world"])
plain, passage = model.encode(["hello world"]), model.encode(["hello world"], prompt_name="passage")
print("sentence-transformers", sentence_transformers.__version__)
print("prompts after loading:", model.prompts)
print("encode_document == no prompt:", np.allclose(document, plain, atol=1e-6))
print("encode_document == prompt 'passage':", np.allclose(document, passage, atol=1e-6))
query = np.allclose(model.encode_query(["hello world"]), model.encode(["query: hello world"]), atol=1e-6)
print("encode_query == prompt 'query':", query)
as_seen = np.allclose(document, plain, atol=1e-6) and not np.allclose(document, passage, atol=1e-6) and query
sys.exit(0 if as_seen else 1)
PY
