"""FLOPs of the matrix products that an encoder-decoder's work needs, two for each multiplication with addition."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Products:
    """FLOPs of parts of an encoder-decoder's forward pass."""

    config: Any

    @property
    def _one(self) -> float:
        """FLOPs of a projection of one token."""
        return 2.0 * self.config.d_model * self._heads

    @property
    def _heads(self) -> int:
        return self.config.num_heads * self.config.d_kv

    @property
    def _wide(self) -> float:
        matrices = 3 if self.config.feed_forward_proj == "gated-gelu" else 2
        return 2.0 * matrices * self.config.d_model * self.config.d_ff

    def scores(self, length: int) -> float:
        """Scores, or mixing, of the encoder's attention over a source."""
        return 2.0 * self.config.num_layers * length * length * self._heads

    def encoder(self, length: int) -> float:
        return self.config.num_layers * length * (4 * self._one + self._wide) + 2 * self.scores(length)

    def cross(self, length: int) -> float:
        """Keys and values of a source for the decoder."""
        return self.config.num_decoder_layers * 2 * length * self._one

    def decoder(self, source: int, start: int, stop: int) -> float:
        """Tokens `start` to `stop - 1` of an answer, logits included."""
        count = stop - start
        attended = sum(range(start + 1, stop + 1)) + count * source
        layers = self.config.num_decoder_layers * (count * (6 * self._one + self._wide) + 4 * attended * self._heads)
        return layers + count * 2.0 * self.config.d_model * self.config.vocab_size

    def forward(self, source: int, target: int) -> float:
        """One example: source and answer lengths."""
        return self.encoder(source) + self.cross(source) + self.decoder(source, 0, target)

    def beam(self, source: int, new: int, beams: int) -> float:
        """Beam search for `new` tokens; the first token has one hypothesis."""
        return (
            self.encoder(source)
            + self.cross(source)
            + self.decoder(source, 0, 1)
            + beams * self.decoder(source, 1, new)
        )

    def training(self, lengths: Iterable[tuple[int, int]]) -> float:
        """Forward and backward passes of examples: gradients by both inputs of each product."""
        return 3 * sum(self.forward(*one) for one in lengths)

    def frozen(self, lengths: Iterable[tuple[int, int]]) -> float:
        """As `training`, without gradients of weights. Attention's products have no weights."""
        return sum(2 * self.forward(source, target) + 2 * self.scores(source) for source, target in lengths)
