"""Token ids of queries and documents by the settings of an encoder: prompts, lengths, case."""

from collections.abc import Sequence
from typing import Any

from lamp_jax.errors import LampError
from lamp_jax.inputs.tokenizer import tokenize
from lamp_jax.retrieval.encoders import EncoderSettings


class TextReader:
    """Tokenizer of queries and of documents. LampError for a prompt that leaves no room for text."""

    def __init__(self, tokenizer: Any, settings: EncoderSettings):
        if settings.lower_case:
            _lower_case(tokenizer)
        self._tokenizer, self.settings = tokenizer, settings
        prompts = (settings.query_prompt, settings.query_length), (settings.document_prompt, settings.document_length)
        tokens = [self._count(prompt, length) if prompt else 0 for prompt, length in prompts]
        self.skips: tuple[int, int] = (0, 0) if settings.include_prompt else (tokens[0], tokens[1])
        """Number of leading tokens of a query and of a document that pooling excludes."""

    def queries(self, texts: Sequence[str]) -> list[list[int]]:
        return self._read(texts, self.settings.query_prompt, self.settings.query_length)

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        return self._read(texts, self.settings.document_prompt, self.settings.document_length)

    def _read(self, texts: Sequence[str], prompt: str, length: int) -> list[list[int]]:
        return tokenize([prompt + text for text in texts], self._tokenizer, max_length=length)

    def _count(self, prompt: str, length: int) -> int:
        """Number of tokens of a prompt before the text, [CLS] included."""
        (tokens,) = tokenize([prompt], self._tokenizer, max_length=length)
        count = len(tokens) - (tokens[-1] in self._tokenizer.all_special_ids)
        if len(tokens) >= length:
            raise LampError(
                f"the prompt {prompt!r:.60} leaves no room for text in {length} tokens; give a larger length"
            )
        return count


def _lower_case(tokenizer: Any) -> None:
    """Adds lower-casing before the tokenizer's normalizer; special tokens in texts are unchanged."""
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    further = [backend.normalizer] if backend.normalizer else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *further])
