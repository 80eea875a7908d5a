"""How profile items and a question become one prompt within a budget of tokens, and that prompt's token ids.

Templates and budget: LaMP (arXiv 2304.11406) with the arithmetic of its public code, Table 2 of ROPG/RSPG
(arXiv 2404.05970). `Compatibility` says where the public code's behaviour is left for a better one.
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
from lamp_jax.tasks.catalog import Item, Task

_JOIN = ", and "
_GAP = " ... "  # what stands where the middle of a question was cut out


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a generator reads for one question.

    `text` can always be written as UTF-8. `tokens` are its ids with the tokenizer's special tokens (T5: a final
    </s>), at most the maximum length. `used_items` counts the profile items that stand in the prompt; `fell_back` is
    true if there were items and none does.
    """

    text: str
    tokens: tuple[int, ...]
    used_items: int
    fell_back: bool


class FastTokenizer(Protocol):
    """A Hugging Face tokenizer that knows offsets, such as `AutoTokenizer` returns."""

    @property
    def backend_tokenizer(self) -> Any: ...


class Encoded(NamedTuple):
    """A text's token ids without special tokens, and where in the text each token begins and ends (characters)."""

    ids: array
    starts: array
    ends: array

    # Tokens can share a character (of a ligature, say). Cut between two of them, it stays on neither side, because
    # alone it would be both tokens again.

    def head(self, count: int) -> int:
        """Where the text of the first `count` tokens ends."""
        return min(self.ends[count - 1], self.starts[count]) if count else 0

    def tail(self, count: int) -> int:
        """Where the text of the last `count` tokens begins."""
        first = len(self.ids) - count
        return max(self.starts[first], self.ends[first - 1]) if count else self.ends[-1]


class PromptTokenizer:
    """All that prompts ask of a tokenizer: encode with offsets, decode, and how many special tokens it adds.

    Remembers up to `remember` texts, because the same items, labels and glue recur. Works on a copy, so padding and
    truncation that are set elsewhere have no effect here. Raises LampError for a tokenizer without offsets.
    """

    def __init__(self, tokenizer: FastTokenizer, *, remember: int = 20_000):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise LampError(f"{type(tokenizer).__name__} has no offsets: use a fast tokenizer (with a tokenizer.json)")
        self._backend = copy.deepcopy(backend)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._remember = remember
        self._seen: dict[str, Encoded] = {}
        sample = self._backend.encode("a")
        before = len(list(takewhile(bool, sample.special_tokens_mask)))
        after = len(list(takewhile(bool, reversed(sample.special_tokens_mask))))
        self._before, self._after = tuple(sample.ids[:before]), tuple(sample.ids[len(sample.ids) - after :])
        self.special_tokens = before + after

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """One `Encoded` per text."""
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
            seen[text] = Encoded(array("i", encoding.ids), array("i", starts), array("i", ends))
        return [seen[text] for text in texts]

    def length(self, text: str) -> int:
        """The number of tokens of `text` with special tokens."""
        return len(self.encode([text])[0].ids) + self.special_tokens

    def ids(self, text: str) -> list[int]:
        """The token ids of `text` with special tokens; not remembered, for texts that do not recur."""
        return self._backend.encode_batch_fast([without_surrogates(text)])[0].ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens and without clean-up of spaces."""
        return self._backend.decode(ids, skip_special_tokens=True)

    def cut(self, ids: Sequence[int], max_length: int) -> tuple[int, ...]:
        """Ids with special tokens, cut at the end of the text to at most `max_length`; the special tokens stay."""
        if len(ids) <= max_length:
            return tuple(ids)
        text = ids[len(self._before) : max(max_length - len(self._after), len(self._before))]
        return (*self._before, *text, *self._after)


def without_surrogates(text: str) -> str:
    """JSON can hold half a surrogate pair, which is no text for a tokenizer; one character for one keeps offsets."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def encode_prompt(text: str, tokenizer: PromptTokenizer, *, max_length: int) -> tuple[int, ...]:
    """The ids of a finished prompt, special tokens included, cut at the end if there are more than `max_length`."""
    return tokenizer.cut(tokenizer.ids(text), max_length)


def build_prompt(
    task: Task,
    question_input: str,
    items: Sequence[Item],
    tokenizer: PromptTokenizer,
    *,
    max_length: int,
    compatibility: Compatibility = CORRECT,
) -> Prompt:
    """The prompt of one question with `items`, best first, in at most `max_length` tokens.

    All items get the same share of what the question leaves free; what one does not need, the next may use. With
    `overlong="middle"` the question comes first: it is whole if it fits, and where shares get too small for an item's
    fixed words, the last items are left out until the rest fits; a question that alone is too long loses its middle.
    With `overlong="tail"` at most 0.6 of `max_length` is kept for the question, 0.1 less each time that an item's
    fixed words do not fit, and no item is used once that fails at 0; ids beyond `max_length` are cut off.

    Raises LampError where an item lacks a field, or if `max_length` leaves no room beside the special tokens.
    """
    if max_length < tokenizer.special_tokens:
        raise LampError(f"maximum length {max_length} is below the {tokenizer.special_tokens} special tokens of a text")
    draft = _measure(task, question_input, items, tokenizer, compatibility=compatibility)
    fill = _fill_as_published if compatibility.overlong == "tail" else _fill_what_is_free
    filled = fill(draft, max_length)
    text, ids, used = filled or (*_bare(draft, max_length), 0)
    text = without_surrogates(text)
    return Prompt(text, tokenizer.cut(ids, max_length), used_items=used, fell_back=used == 0 and len(items) > 0)


class _Piece(NamedTuple):
    """A profile item, the text that may be shortened, and the length of its fixed words (special tokens counted)."""

    item: Item
    text: str
    encoded: Encoded
    need: int


@dataclass(frozen=True, slots=True)
class _Draft:
    """A prompt in the making: its parts, measured in tokens with special tokens, as the public code counts them."""

    task: Task
    question: str
    length: int
    pieces: tuple[_Piece, ...]
    glue: int
    tokenizer: PromptTokenizer
    compatibility: Compatibility

    def shares(self, room: int) -> list[int] | None:
        """Tokens of each item's text, special tokens counted; None if the fixed words of one do not fit."""
        count, special = len(self.pieces), self.tokenizer.special_tokens
        per = (room - self.glue - 2 * (count - 1)) // count
        saved, shares = 0, []
        for piece in self.pieces:
            share, whole = per + saved - piece.need, len(piece.encoded.ids) + special
            if share < 0:
                return None
            if share == 0 and self.compatibility.zero_budget == "whole":
                share = whole
            shares.append(min(share, whole))
            saved += per - shares[-1] - piece.need
        return shares

    def text(self, shares: Sequence[int]) -> str:
        """The prompt with so much of each item's text."""
        form = self.task.prompt
        frame = form.item.wording(self.compatibility.lamp5_phrase)
        phrases = [
            frame.format_map({**piece.item, form.item.cut: self._shortened(piece, share)})
            for piece, share in zip(self.pieces, shares, strict=True)
        ]
        if form.after is None:
            return f"{_JOIN.join(phrases)}{form.glue}{self.question}"
        head, word, tail = self.question.partition(form.after)
        return "".join((head, word, *(_JOIN + phrase for phrase in phrases), tail))

    def _shortened(self, piece: _Piece, share: int) -> str:
        ids = piece.encoded.ids
        kept = max(share - self.tokenizer.special_tokens, 0)
        if self.compatibility.item_text == "decoded":
            return self.tokenizer.decode(ids[:kept])
        return piece.text if kept >= len(ids) else piece.text[: piece.encoded.head(kept)]


def _measure(
    task: Task, question: str, items: Sequence[Item], tokenizer: PromptTokenizer, *, compatibility: Compatibility
) -> _Draft:
    form = task.prompt
    if form.after is not None and form.after not in question:
        items = ()  # There is no place for them in this question.
    cut, measured, glue = form.item.cut, form.item.measured, form.glue_measured or ""
    try:
        texts = [str(item[cut]) for item in items]
        fixed = [] if isinstance(measured, int) else [measured.format_map(item) for item in items]
    except KeyError as error:
        broken = next(item for item in items if error.args[0] not in item)
        raise LampError(f"{task.name}: profile item {broken.get('id')!r} has no field {error}; add it") from None
    encoded = tokenizer.encode([question, glue, *texts, *fixed])
    lengths = [len(text.ids) + tokenizer.special_tokens for text in encoded]
    needs = [measured] * len(texts) if isinstance(measured, int) else lengths[2 + len(texts) :]
    pieces = tuple(map(_Piece, items, texts, encoded[2:], needs))
    return _Draft(task, question, lengths[0], pieces, form.glue_cost(lengths[1]), tokenizer, compatibility)


_Filled = tuple[str, list[int], int] | None  # text, its ids, number of items; None where no item can be used


def _fill_as_published(draft: _Draft, max_length: int) -> _Filled:
    """At most 0.6 of the length is kept for the question, or 0.5, ... where the items' fixed words need it."""
    reserved = 0.6
    while draft.pieces and reserved >= 0:
        shares = draft.shares(max_length - min(draft.length, int(reserved * max_length)))
        if shares is not None:
            text = draft.text(shares)
            return text, draft.tokenizer.ids(text), len(shares)
        reserved -= 0.1  # Ends at 2.8e-17, not 0, as in the public code: floats are part of its arithmetic.
    return None


def _fill_what_is_free(draft: _Draft, max_length: int) -> _Filled:
    """The question first, then as many items as fit beside it."""
    free = max_length - draft.length
    fitting = tuple(piece for piece in draft.pieces if piece.need + draft.glue <= free)
    while fitting:
        draft, room = replace(draft, pieces=fitting), free
        while (shares := draft.shares(room)) is not None:
            text = draft.text(shares)
            ids = draft.tokenizer.ids(text)
            # Words tokenise otherwise in their place than alone, so only the whole prompt can be trusted.
            if len(ids) <= max_length:
                return text, ids, len(shares)
            room -= len(ids) - max_length
        fitting = fitting[:-1]
    return None


def _bare(draft: _Draft, max_length: int) -> tuple[str, list[int]]:
    """The question without items, and its ids; too long, it loses its middle unless the end is to be cut."""
    question, tokenizer = draft.question, draft.tokenizer
    if draft.length <= max_length or draft.compatibility.overlong == "tail":
        return question, tokenizer.ids(question)
    encoded = tokenizer.encode([question])[0]
    instruction = bisect_left(encoded.starts, len(draft.task.instruction(question)))
    room = max_length - tokenizer.length(_GAP)
    while room > 0:
        first = min(instruction, room // 2)
        head = first + (room - first) // 2
        text = f"{question[: encoded.head(head)]}{_GAP}{question[encoded.tail(room - head) :]}"
        ids = tokenizer.ids(text)
        if len(ids) <= max_length:
            return text, ids
        room -= len(ids) - max_length
    return "", tokenizer.ids("")
