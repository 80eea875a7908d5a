"""Vocabulary of the synthetic benchmark: topics, synonyms and styles.

It is the same for every user, split and seed, so that a retriever trained on the words of one user generalizes to all
others.
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

_ONSETS = (*"bcdfghjklmnprstvwz", "br", "ch", "dr", "fl", "gr", "pl", "sh", "st", "th", "tr")
_VOWELS = ("a", "ai", "e", "ea", "i", "o", "ou", "u")
_CODAS = ("ck", "l", "m", "n", "nd", "r", "s", "st", "t", "x")


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Small artificial language in two dialects without common words.

    `topics[dialect][topic]` and `fillers[dialect]` are tuples of words; the n-th word of a topic (the n-th filler)
    of one dialect is a synonym of the n-th of the other. `styles[style]` are words that occur in titles and tweets
    only, not in texts. `prior[topic]` is a number below TOPICS: the most common opinion about the topic.
    """

    topics: tuple[tuple[tuple[str, ...], ...], ...]
    fillers: tuple[tuple[str, ...], ...]
    styles: tuple[tuple[str, ...], ...]
    prior: tuple[int, ...]

    def describe(self, rng: random.Random, *, topic: int, dialect: int, words: int = 0) -> str:
        """Text of 7 to 10 words of a dialect, 4 or 5 of them on the topic; with `words`, filled up to as many words."""
        drawn = rng.sample(self.topics[dialect][topic], rng.randint(4, 5))
        drawn += rng.sample(self.fillers[dialect], rng.randint(3, 5))
        drawn += rng.choices(self.fillers[dialect], k=max(words - len(drawn), 0))
        rng.shuffle(drawn)
        return " ".join(drawn)

    def headline(self, text: str) -> str:
        """First three words of a description that are not fillers."""
        fillers = {word for dialect in self.fillers for word in dialect}
        return " ".join([word for word in text.split() if word not in fillers][:3])


def _new_words(rng: random.Random, *, syllables: int, taken: set[str]) -> Iterator[str]:
    """Infinite new words, not yet in `taken`, of open syllables and a final consonant."""
    while True:
        word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)) + rng.choice(_CODAS)
        if word not in taken:
            taken.add(word)
            yield word


def _build() -> Lexicon:
    rng = random.Random("the language of the synthetic benchmark")
    taken: set[str] = set()
    short, long = (_new_words(rng, syllables=count, taken=taken) for count in (1, 2))

    def take(words: Iterator[str], count: int) -> tuple[str, ...]:
        return tuple(itertools.islice(words, count))

    return Lexicon(
        topics=tuple(tuple(take(long, TOPIC_WORDS) for _ in range(TOPICS)) for _ in range(DIALECTS)),
        fillers=tuple(take(short, FILLERS) for _ in range(DIALECTS)),
        styles=tuple(take(long, STYLE_WORDS) for _ in range(STYLES)),
        prior=tuple(rng.sample(range(TOPICS), TOPICS)),
    )


LEXICON = _build()
