"""Prompts from profile items and a question within a budget of tokens, and their token ids.

Templates and budget: LaMP (arXiv 2304.11406) with the arithmetic of its public code, Table 2 of ROPG/RSPG
(arXiv 2404.05970). `Compatibility` chooses between the public code's behaviour and corrected behaviour.
"""

import copy
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, NamedTuple, Protocol

from lamp_jax.config import CORRECT, Compatibility
from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import ProfileItem, Task

_JOIN = ", and "
_ELLIPSIS = " ... "  # in place of the removed middle of a question


@dataclass(frozen=True, slots=True)
class Prompt:
    """Input of a generator for one question.

    `text` can always be written as UTF-8. `tokens` are its ids with the tokenizer's special tokens (T5: a final
    </s>), at most the maximum length. `used_items` is the number of profile items in the prompt; `fell_back` is true if
    there were items and none is in it.
    """

    text: str
    tokens: tuple[int, ...]
    used_items: int
    fell_back: bool


class FastTokenizer(Protocol):
    """Hugging Face tokenizer with offsets, such as `AutoTokenizer` returns."""

    @property
    def backend_tokenizer(self) -> Any: ...


class EncodedText(NamedTuple):
    """Token ids of a text without special tokens, and each token's start and end in the text (characters)."""

    ids: array
    starts: array
    ends: array

    # Tokens can share a character (such as a ligature). A cut between two such tokens drops the character on both
    # sides, because alone it would be encoded as both tokens again.

    def head(self, count: int) -> int:
        """End of the text of the first `count` tokens."""
        return min(self.ends[count - 1], self.starts[count]) if count else 0

    def tail(self, count: int) -> int:
        """Start of the text of the last `count` tokens."""
        first = len(self.ids) - count
        return max(self.starts[first], self.ends[first - 1]) if count else self.ends[-1]


class PromptTokenizer:
    """Tokenizer operations that prompts need: encoding with offsets, decoding, the number of special tokens.

    Caches up to `remember` texts, because the same items, labels and separators recur. Works on a copy, so padding and
    truncation that are set elsewhere have no effect. Raises LampError for a tokenizer without offsets.
    """

    def __init__(self, tokenizer: FastTokenizer, *, remember: int = 20_000):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise LampError(f"{type(tokenizer).__name__} has no offsets: use a fast tokenizer (with a tokenizer.json)")
        self._backend = copy.deepcopy(backend)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._remember = remember
        self._seen: dict[str, EncodedText] = {}
        sample = self._backend.encode("a")
        before = len(list(takewhile(bool, sample.special_tokens_mask)))
        after = len(list(takewhile(bool, reversed(sample.special_tokens_mask))))
        self._before, self._after = tuple(sample.ids[:before]), tuple(sample.ids[len(sample.ids) - after :])
        self.special_tokens = before + after

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """One `EncodedText` per text."""
        seen = self._seen
        missing = [text for text in dict.fromkeys(texts) if text not in seen]
        if len(seen) + len(missing) > self._remember:
            # A new dictionary, never an emptied one: another thread may be reading the old.
            seen = self._seen = {}
            missing = list(dict.fromkeys(texts))
        clean = [without_surrogates(text) for text in missing]
        encodings = self._backend.encode_batch(clean, add_special_tokens=False)
        for text, encoding in zip(missing, encodings, strict=True):
            starts, ends = zip(*encoding.offsets, strict=True) if len(encoding) else ((), ())
            seen[text] = EncodedText(array("i", encoding.ids), array("i", starts), array("i", ends))
        return [seen[text] for text in texts]

    def length(self, text: str) -> int:
        """Number of tokens of `text` with special tokens."""
        return len(self.encode([text])[0].ids) + self.special_tokens

    def ids(self, text: str) -> list[int]:
        """Token ids of `text` with special tokens; not cached, for texts that do not recur."""
        return self._backend.encode_batch_fast([without_surrogates(text)])[0].ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens and without clean-up of spaces."""
        return self._backend.decode(ids, skip_special_tokens=True)

    def cut(self, ids: Sequence[int], max_length: int) -> tuple[int, ...]:
        """Ids with special tokens, truncated at the end of the text to at most `max_length`; special tokens are
        kept."""
        if len(ids) <= max_length:
            return tuple(ids)
        text = ids[len(self._before) : max(max_length - len(self._after), len(self._before))]
        return (*self._before, *text, *self._after)


def without_surrogates(text: str) -> str:
    """Text with `?` for lone surrogates, which JSON may contain and tokenizers reject; offsets do not change."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def encode_prompt(text: str, tokenizer: PromptTokenizer, *, max_length: int) -> tuple[int, ...]:
    """Token ids of a finished prompt with special tokens, truncated at the end to at most `max_length`."""
    return tokenizer.cut(tokenizer.ids(text), max_length)


def build_prompt(
    task: Task,
    question_input: str,
    items: Sequence[ProfileItem],
    tokenizer: PromptTokenizer,
    *,
    max_length: int,
    compatibility: Compatibility = CORRECT,
) -> Prompt:
    """Prompt of one question with `items`, best first, in at most `max_length` tokens.

    All items get the same share of the tokens that the question leaves; tokens that an item does not need are passed to
    the next. With `overlong="middle"` the question has priority: it is complete if it fits, and where shares get too
    small for an item's fixed words, the last items are left out until the rest fits; a question that alone is too long
    loses its middle. With `overlong="tail"` at most 0.6 of `max_length` is reserved for the question, 0.1 less each
    time that an item's fixed words do not fit, and no item is used if that fails at 0; ids beyond `max_length` are cut
    off.

    Raises LampError where an item lacks a field, or if `max_length` leaves no room besides the special tokens.
    """
    if max_length < tokenizer.special_tokens:
        raise LampError(f"maximum length {max_length} is below the {tokenizer.special_tokens} special tokens of a text")
    draft = _measure(task, question_input, items, tokenizer, compatibility=compatibility)
    fill = _fill_public_budget if compatibility.overlong == "tail" else _fill_free_budget
    filled = fill(draft, max_length)
    text, ids, used = filled or (*_question_alone(draft, max_length), 0)
    text = without_surrogates(text)
    return Prompt(text, tokenizer.cut(ids, max_length), used_items=used, fell_back=used == 0 and len(items) > 0)


class _DraftItem(NamedTuple):
    """Profile item, its text that may be shortened, and the tokens of its fixed words (with special tokens)."""

    item: ProfileItem
    text: str
    encoded: EncodedText
    need: int


@dataclass(frozen=True, slots=True)
class _Draft:
    """Parts of a prompt, measured in tokens with special tokens, as the public code counts them."""

    task: Task
    question: str
    length: int
    pieces: tuple[_DraftItem, ...]
    separator: int
    tokenizer: PromptTokenizer
    compatibility: Compatibility

    def shares(self, room: int) -> list[int] | None:
        """Tokens of each item's text, with special tokens; None if the fixed words of one do not fit."""
        count, special = len(self.pieces), self.tokenizer.special_tokens
        per = (room - self.separator - 2 * (count - 1)) // count
        saved, shares = 0, []
        for piece in self.pieces:
            share, complete = per + saved - piece.need, len(piece.encoded.ids) + special
            if share < 0:
                return None
            if share == 0 and self.compatibility.zero_budget == "whole":
                share = complete
            shares.append(min(share, complete))
            saved += per - shares[-1] - piece.need
        return shares

    def text(self, shares: Sequence[int]) -> str:
        """Text of the prompt with each item's text shortened to its share."""
        form = self.task.prompt
        template = form.item.wording(self.compatibility.lamp5_phrase)
        phrases = [
            template.format_map({**piece.item, form.item.cut: self._shortened(piece, share)})
            for piece, share in zip(self.pieces, shares, strict=True)
        ]
        if form.after is None:
            return f"{_JOIN.join(phrases)}{form.separator}{self.question}"
        head, word, tail = self.question.partition(form.after)
        return "".join((head, word, *(_JOIN + phrase for phrase in phrases), tail))

    def _shortened(self, piece: _DraftItem, share: int) -> str:
        ids = piece.encoded.ids
        kept = max(share - self.tokenizer.special_tokens, 0)
        if self.compatibility.item_text == "decoded":
            return self.tokenizer.decode(ids[:kept])
        return piece.text if kept >= len(ids) else piece.text[: piece.encoded.head(kept)]


def _measure(
    task: Task, question: str, items: Sequence[ProfileItem], tokenizer: PromptTokenizer, *, compatibility: Compatibility
) -> _Draft:
    form = task.prompt
    if form.after is not None and form.after not in question:
        items = ()  # There is no place for them in this question.
    cut, measured, separator = form.item.cut, form.item.measured, form.separator_measured or ""
    try:
        texts = [str(item[cut]) for item in items]
        fixed = [] if isinstance(measured, int) else [measured.format_map(item) for item in items]
    except KeyError as error:
        broken = next(item for item in items if error.args[0] not in item)
        raise LampError(f"{task.name}: profile item {broken.get('id')!r} has no field {error}; add it") from None
    encoded = tokenizer.encode([question, separator, *texts, *fixed])
    lengths = [len(text.ids) + tokenizer.special_tokens for text in encoded]
    needs = [measured] * len(texts) if isinstance(measured, int) else lengths[2 + len(texts) :]
    pieces = tuple(map(_DraftItem, items, texts, encoded[2:], needs))
    return _Draft(task, question, lengths[0], pieces, form.separator_cost(lengths[1]), tokenizer, compatibility)


_FilledPrompt = tuple[str, list[int], int] | None  # text, its ids, number of items; None where no item can be used


def _fill_public_budget(draft: _Draft, max_length: int) -> _FilledPrompt:
    """Prompt with at most 0.6 of the length reserved for the question, or 0.5, ... where fixed words need it."""
    reserved = 0.6
    while draft.pieces and reserved >= 0:
        shares = draft.shares(max_length - min(draft.length, int(reserved * max_length)))
        if shares is not None:
            text = draft.text(shares)
            return text, draft.tokenizer.ids(text), len(shares)
        reserved -= 0.1  # Ends at 2.8e-17, not 0, as in the public code: floats are part of its arithmetic.
    return None


def _fill_free_budget(draft: _Draft, max_length: int) -> _FilledPrompt:
    """Prompt with the complete question and as many items as fit."""
    free = max_length - draft.length
    fitting = tuple(piece for piece in draft.pieces if piece.need + draft.separator <= free)
    while fitting:
        draft, room = replace(draft, pieces=fitting), free
        while (shares := draft.shares(room)) is not None:
            text = draft.text(shares)
            ids = draft.tokenizer.ids(text)
            # Words are tokenized differently in context than alone, so only the complete prompt's length is exact.
            if len(ids) <= max_length:
                return text, ids, len(shares)
            room -= len(ids) - max_length
        fitting = fitting[:-1]
    return None


def _question_alone(draft: _Draft, max_length: int) -> tuple[str, list[int]]:
    """Question without items, and its ids; one that is too long loses its middle, or keeps it with
    `overlong="tail"`."""
    question, tokenizer = draft.question, draft.tokenizer
    if draft.length <= max_length or draft.compatibility.overlong == "tail":
        return question, tokenizer.ids(question)
    encoded = tokenizer.encode([question])[0]
    instruction = bisect_left(encoded.starts, len(draft.task.instruction(question)))
    room = max_length - tokenizer.length(_ELLIPSIS)
    while room > 0:
        first = min(instruction, room // 2)
        head = first + (room - first) // 2
        text = f"{question[: encoded.head(head)]}{_ELLIPSIS}{question[encoded.tail(room - head) :]}"
        ids = tokenizer.ids(text)
        if len(ids) <= max_length:
            return text, ids
        room -= len(ids) - max_length
    return "", tokenizer.ids("")
