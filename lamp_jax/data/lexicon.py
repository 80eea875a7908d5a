"""The words of the synthetic benchmark: which of them share a topic, which are synonyms, which carry a style.

Everything here is fixed: the same for every user, split and seed, so that what a retriever learns about words
from one user holds for all others.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

TOPICS = 15
TOPIC_WORDS = 8  # of one topic in one dialect
FILLERS = 12  # of one dialect
STYLES = 15
STYLE_WORDS = 2
DIALECTS = 2

_ONSETS = "b br c ch d dr f fl g gr h j k l m n p pl r s sh st t th tr v w z".split()
_VOWELS = "a ai e ea i o ou u".split()
_CODAS = "ck l m n nd r s st t x".split()


@dataclass(frozen=True, slots=True)
class Lexicon:
    """A small invented language in two dialects that have no word in common.

    `topics[dialect][topic]` and `fillers[dialect]` are tuples of words; the n-th word of a topic (the n-th filler)
    of one dialect means the same as the n-th of the other. `styles[style]` are words that occur in no text, only in
    titles and tweets. `prior[topic]` is a number below TOPICS: what people in general think of the topic.
    """

    topics: tuple[tuple[tuple[str, ...], ...], ...]
    fillers: tuple[tuple[str, ...], ...]
    styles: tuple[tuple[str, ...], ...]
    prior: tuple[int, ...]

    @property
    def all_fillers(self) -> tuple[str, ...]:
        return tuple(word for dialect in self.fillers for word in dialect)

    def topic_of(self, text: str) -> int | None:
        """The topic that most words of `text` belong to, in whichever dialect; None where no word has a topic."""
        words = text.split()
        counts = [sum(word in dialect[topic] for dialect in self.topics for word in words) for topic in range(TOPICS)]
        return max(range(TOPICS), key=counts.__getitem__) if any(counts) else None


def _syllables(rng: random.Random) -> Iterator[str]:
    while True:
        yield rng.choice(_ONSETS) + rng.choice(_VOWELS)


def _words(rng: random.Random, *, syllables: int, taken: set[str]) -> Iterator[str]:
    """Endless new words: open syllables, the last one closed."""
    while True:
        word = "".join(itertools.islice(_syllables(rng), syllables)) + rng.choice(_CODAS)
        if word not in taken:
            taken.add(word)
            yield word


def _build() -> Lexicon:
    rng = random.Random("the language of the synthetic benchmark")
    taken: set[str] = set()
    short, long = (_words(rng, syllables=count, taken=taken) for count in (1, 2))

    def take(words: Iterator[str], count: int) -> tuple[str, ...]:
        return tuple(itertools.islice(words, count))

    return Lexicon(
        topics=tuple(tuple(take(long, TOPIC_WORDS) for _ in range(TOPICS)) for _ in range(DIALECTS)),
        fillers=tuple(take(short, FILLERS) for _ in range(DIALECTS)),
        styles=tuple(take(long, STYLE_WORDS) for _ in range(STYLES)),
        prior=tuple(rng.sample(range(TOPICS), TOPICS)),
    )


LEXICON = _build()
