"""Prompts: within the budget, with the question and the items' own words, for any texts."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lamp_jax.config import CORRECT, REFERENCE, Compatibility
from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import TASKS, ProfileItem, Task, find_task
from lamp_jax.tasks.prompts import Prompt, PromptTokenizer, build_prompt, encode_prompt

END = 1  # </s>
NEWS = find_task("LaMP-4")
REVIEWS = find_task("LaMP-3")
TAIL = replace(CORRECT, overlong="tail")


@cache
def load_tokenizer(remember: int = 20_000) -> PromptTokenizer:
    path = Path(__file__).parents[1] / "cases/tiny/t5/tokenizer.json"
    return PromptTokenizer(SimpleNamespace(backend_tokenizer=Tokenizer.from_file(str(path))), remember=remember)


def build(task: Task, question: str, items: list[ProfileItem], max_length: int = 512, compatibility=CORRECT) -> Prompt:
    return build_prompt(task, question, items, load_tokenizer(), max_length=max_length, compatibility=compatibility)


def question_of(task: Task, text: str) -> str:
    return task.template.format(text=text, title=text, ref1=text, ref2=text)


def item_of(task: Task, text: str, label: str = "5") -> dict[str, str]:
    return {**dict.fromkeys(task.fields, label), task.prompt.item.cut: text, "id": "1"}


def count(text: str) -> int:
    return load_tokenizer().length(text)


def clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def test_a_prompt_is_the_tasks_template_with_items_and_question():
    first, second = {"title": "One", "text": "First text."}, {"title": "Two", "text": "Second text."}
    prompt = build(NEWS, question_of(NEWS, "of today"), [first, second])
    assert prompt.text == (
        '"One" is the title for "First text." , and "Two" is the title for "Second text." . '
        "Generate a headline for the following article: of today"
    )
    assert (prompt.used_items, prompt.fell_back) == (2, False)
    assert prompt.tokens == encode_prompt(prompt.text, load_tokenizer(), max_length=512)


def test_lamp1_inserts_titles_after_the_first_word_title():
    task = find_task("LaMP-1")
    prompt = build(task, question_of(task, "a title"), [{"title": "One"}, {"title": "Two"}])
    assert prompt.text.startswith(
        'For an author who has written the paper with the title, and "One", and "Two" "a title", which reference'
    )


def test_lamp5_has_the_papers_phrase_by_option():
    task = find_task("LaMP-5")
    item = {"title": "T", "abstract": "words"}
    paper = replace(CORRECT, lamp5_phrase="the title")
    assert build(task, "of", [item]).text == '"T" is a title for "words" . Following the given patterns of'
    assert build(task, "of", [item], compatibility=paper).text.startswith('"T" is the title for "words" . ')


def test_other_tasks_do_not_have_the_papers_phrase():
    paper = replace(CORRECT, lamp5_phrase="the title")
    for task in TASKS.values():
        changed = build(task, question_of(task, "x"), [item_of(task, "y")], compatibility=paper)
        assert (changed != build(task, question_of(task, "x"), [item_of(task, "y")])) == (task.name == "LaMP-5")


@pytest.mark.parametrize("compatibility", [CORRECT, REFERENCE])
def test_without_items_the_prompt_is_the_question(compatibility):
    prompt = build(REVIEWS, question_of(REVIEWS, "fine"), [], compatibility=compatibility)
    assert (prompt.text, prompt.used_items, prompt.fell_back) == (question_of(REVIEWS, "fine"), 0, False)


def test_original_text_keeps_characters_unknown_to_the_tokenizer():
    text = "a {score}\x85\n  <b> \\alpha 'n' , end"
    prompt = build(REVIEWS, question_of(REVIEWS, "fine"), [{"score": 5, "text": text}])
    assert prompt.text.startswith(f'5 is the score for "{text}" . What is the score')


def test_decoded_text_is_the_text_decoded_by_the_tokenizer():
    text = "a \\ {score}\n  end"
    item = {"score": "5", "text": text}
    prompt = build(REVIEWS, "fine", [item], compatibility=replace(CORRECT, item_text="decoded"))
    tokenizer = load_tokenizer()
    assert prompt.text == f'5 is the score for "{tokenizer.decode(tokenizer.encode([text])[0].ids)}" . fine'
    assert "\n" not in prompt.text


def test_unused_budget_of_a_short_item_is_given_to_the_next():
    short, long = {"score": "5", "text": "ok"}, {"score": "1", "text": "good food " * 200}
    one, two = (build(REVIEWS, "fine", items, 128) for items in ([long, long], [short, long]))
    assert two.text.count("food") > 0.75 * one.text.count("food") > 0


def zero_budget_case() -> tuple[list[ProfileItem], int]:
    """An item and a length for which exactly no token is left: fixed words, glue, question."""
    need = count('5 is the score for " " ')
    return [{"score": "5", "text": "some words"}], need + 1 + count("fine")


def test_zero_budget_gives_no_text_or_the_complete_text():
    items, length = zero_budget_case()
    complete = replace(CORRECT, zero_budget="whole", overlong="tail")
    assert build(REVIEWS, "fine", items, length).text == '5 is the score for "" . fine'
    assert build(REVIEWS, "fine", items, length, complete).text == '5 is the score for "some words" . fine'
    assert build(REVIEWS, "fine", items, length - 1).fell_back


def test_a_question_that_fits_is_complete_and_the_profile_is_cut():
    question = question_of(REVIEWS, "fine food " * 60)
    items = [{"score": "5", "text": "good " * 100}] * 4
    lengths = range(count(question), count(question) + 150, 10)
    prompts = [build(REVIEWS, question, items, length) for length in lengths]
    assert all(prompt.text.endswith(question) for prompt in prompts)
    used = [prompt.used_items for prompt in prompts]
    assert used == sorted(used)
    assert set(used) == {0, 1, 2, 3, 4}
    assert [prompt.fell_back for prompt in prompts] == [n == 0 for n in used]


def test_the_last_items_are_left_out_first():
    items = [{"title": f"number {i}", "text": "words"} for i in range(30)]
    prompt = build(NEWS, question_of(NEWS, "fine"), items, 256)
    assert 1 < prompt.used_items < 30
    assert [f'"number {i}"' in prompt.text for i in range(30)] == [i < prompt.used_items for i in range(30)]


def test_an_item_that_does_not_fit_does_not_displace_the_others():
    monster = {"title": "long title " * 300, "text": "text"}
    prompt = build(NEWS, question_of(NEWS, "fine"), [monster, {"title": "One", "text": "text"}])
    assert prompt.text.startswith('"One" is the title for "text" . ')
    assert (prompt.used_items, prompt.fell_back) == (1, False)


def test_the_public_codes_budget_drops_all_items_at_once():
    monster = {"title": "long title " * 300, "text": "text"}
    prompt = build(NEWS, question_of(NEWS, "fine"), [{"title": "One", "text": "text"}, monster], compatibility=TAIL)
    assert (prompt.text, prompt.used_items, prompt.fell_back) == (question_of(NEWS, "fine"), 0, True)


def test_an_overlong_question_loses_its_middle():
    words = " ".join(f"w{i}" for i in range(500))
    prompt = build(REVIEWS, question_of(REVIEWS, words), [{"score": "5", "text": "x"}], 128)
    head, tail = prompt.text.split(" ... ")
    assert head.startswith(REVIEWS.instruction(question_of(REVIEWS, words)) + " w0 w1 ")
    assert tail.endswith(" w498 w499")
    assert 120 <= len(prompt.tokens) <= 128
    assert prompt.fell_back


def test_an_overlong_prompt_loses_its_end_in_the_public_code():
    question = question_of(REVIEWS, "fine food " * 300)
    prompt = build(REVIEWS, question, [{"score": "5", "text": "good " * 100}], 128, TAIL)
    assert prompt.text.endswith(question)
    assert prompt.used_items == 1
    assert prompt.tokens == (*load_tokenizer().ids(prompt.text)[:127], END)


def test_a_prompt_fits_although_words_tokenize_differently_in_context():
    text = "president of the other country"
    counted = count('5 is the score for " " ') + 1 + count("fine") + count(text)
    assert count(f'5 is the score for "{text}" . fine') > counted
    prompt = build(REVIEWS, "fine", [{"score": "5", "text": text}], counted)
    assert count(prompt.text) <= counted
    assert prompt.text.startswith('5 is the score for "')


def test_a_character_of_several_tokens_is_not_cut():
    encoded = load_tokenizer().encode(["aﷺb"])[0]
    assert len(encoded.ids) == 12
    assert [encoded.head(n) for n in range(12)] == [0, 0, *[1] * 9, 2]
    assert [encoded.tail(n) for n in range(12)] == [3, *[2] * 9, 1, 1]


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_long_instruction_survives_an_overlong_question(task):
    question = question_of(task, " ".join(f"w{i}" for i in range(300)))
    instruction = task.instruction(question_of(task, "w0"))
    instruction = instruction.split('"')[0]  # The title in LaMP-1's input is not part of the instruction.
    prompt = build(task, question, [], int(count(instruction) / 0.7) + 2)
    assert prompt.text.startswith(instruction)
    assert prompt.text.endswith(question[-6:])
    assert " ... " in prompt.text


def test_the_public_codes_budget_reserves_nothing_for_the_question():
    title = "word " * 100
    length = count(f'"{title}" is the title for " " ') + 2
    prompt = build(NEWS, question_of(NEWS, "fine"), [{"title": title, "text": "x"}], length, TAIL)
    assert prompt.used_items == 1
    assert build(NEWS, question_of(NEWS, "fine"), [{"title": title, "text": "x"}], length - 2, TAIL).fell_back


def test_a_question_without_the_insertion_point_is_kept_and_reported():
    prompt = build(find_task("LaMP-1"), "bare text", [{"title": "One"}])
    assert (prompt.text, prompt.used_items, prompt.fell_back) == ("bare text", 0, True)


def test_a_question_without_its_instruction_still_gets_its_profile():
    task = find_task("LaMP-2")
    prompt = build(task, "bare text", [{"description": "A film", "tag": "comedy"}])
    assert prompt.text == 'the tag for the movie: "A film" is "comedy" . bare text'


def test_a_profile_of_200_items_gives_a_prompt():
    items = [{"score": str(i % 5 + 1), "text": f"review number {i}"} for i in range(200)]
    assert build(REVIEWS, question_of(REVIEWS, "fine"), items).used_items > 10
    assert build(REVIEWS, question_of(REVIEWS, "fine"), items, compatibility=REFERENCE).fell_back


@pytest.mark.parametrize("item", [{"id": "77", "title": "x"}, {"id": "77", "text": "x"}])
def test_a_missing_field_names_the_item(item):
    with pytest.raises(LampError, match="LaMP-4: profile item '77' has no field 't"):
        build(NEWS, "q", [{"id": "76", "title": "x", "text": "y"}, item])


def test_a_length_without_room_is_an_error():
    with pytest.raises(LampError, match="maximum length 0 is below the 1 special token"):
        build(NEWS, "q", [], 0)


def test_a_tokenizer_without_offsets_is_an_error():
    with pytest.raises(LampError, match="use a fast tokenizer"):
        PromptTokenizer(object())  # pyright: ignore[reportArgumentType]


def test_truncation_set_elsewhere_has_no_effect():
    backend = Tokenizer.from_file(str(Path(__file__).parents[1] / "cases/tiny/t5/tokenizer.json"))
    backend.enable_truncation(5)
    backend.enable_padding(length=50)
    tokenizer = PromptTokenizer(SimpleNamespace(backend_tokenizer=backend))
    backend.enable_truncation(4)
    text = "one two three four five six seven eight"
    assert tokenizer.length(text) == len(tokenizer.ids(text)) == count(text) > 5


def test_the_token_cache_changes_nothing():
    items = [{"score": "5", "text": f"number {i} " * 20} for i in range(8)]

    def build_one(i: int) -> Prompt:
        return build_prompt(REVIEWS, f"q{i % 3}", items[i % 5 : i % 5 + 3], load_tokenizer(remember=4), max_length=64)

    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(build_one, range(60)))
    assert parallel == [build(REVIEWS, f"q{i % 3}", items[i % 5 : i % 5 + 3], 64) for i in range(60)]


def test_special_tokens_at_both_ends_stay():
    backend = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "word": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    tokenizer = PromptTokenizer(SimpleNamespace(backend_tokenizer=backend))
    assert tokenizer.special_tokens == 2
    assert encode_prompt("word " * 9, tokenizer, max_length=5) == (0, 3, 3, 3, 1)
    assert encode_prompt("word " * 9, tokenizer, max_length=2) == (0, 1)
    item = {"score": "5", "text": "word " * 90}
    prompt = build_prompt(REVIEWS, "word word", [item], tokenizer, max_length=40)
    assert prompt.text.endswith('word" . word word')
    assert len(prompt.tokens) <= 40


# Real texts: quotes, braces, U+0085, ligatures, lines, emoji, a lone surrogate, the tokenizer's own tokens.
WORDS = ["the", "news", '"a', 'b"', "{text}", "{", "\x85", "ﬁﷺ", "\n", "  ", "😀", "\ud83d", "</s>", "review:", ","]
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=80).map(" ".join))
ITEMS = st.lists(st.tuples(TEXTS, st.sampled_from(["5", "a {title}", ""]) | TEXTS), max_size=9)
ANY_TASK = st.sampled_from(list(TASKS.values()))
COMPATIBILITIES = st.builds(
    Compatibility,
    item_text=st.sampled_from(["original", "decoded"]),
    zero_budget=st.sampled_from(["nothing", "whole"]),
    overlong=st.sampled_from(["middle", "tail"]),
    lamp5_phrase=st.sampled_from(["a title", "the title"]),
)


@given(ANY_TASK, TEXTS, ITEMS, st.integers(1, 300), COMPATIBILITIES)
def test_any_texts_give_a_prompt_within_its_length(task, text, pairs, max_length, compatibility):
    items = [item_of(task, *pair) for pair in pairs]
    prompt = build(task, question_of(task, text), items, max_length, compatibility)
    assert len(prompt.tokens) <= max_length
    assert prompt.tokens[-1] == END
    assert prompt.used_items <= len(items)
    assert prompt.fell_back == (bool(items) and prompt.used_items == 0)
    assert clean(prompt.text) == prompt.text
    if compatibility.overlong == "middle":
        assert list(prompt.tokens) == load_tokenizer().ids(prompt.text)


@given(ANY_TASK, TEXTS, ITEMS, st.integers(150, 400))
def test_a_question_is_complete_or_keeps_its_instruction_and_its_end(task, text, pairs, max_length):
    question = clean(question_of(task, text * 5))
    assume(count(task.instruction(question)) < 0.7 * max_length)
    prompt = build(task, question, [item_of(task, *pair) for pair in pairs], max_length)
    if count(question) <= max_length:
        head, word, tail = question.partition(task.prompt.after) if task.prompt.after else ("", "", question)
        assert prompt.text.startswith(head + word)
        assert prompt.text.endswith(tail)
    else:
        head, _, tail = prompt.text.partition(" ... ")
        assert question.startswith(head)
        assert head.startswith(task.instruction(question))
        assert question.endswith(tail)
        assert min(len(head), len(tail)) > 0


def is_cut_from(task: Task, shown: str, items: list[dict[str, str]]) -> bool:
    """Whether `shown` is these items, each with the beginning of its own text, joined as the task joins them."""
    if not items:
        return not shown
    item, cut = items[0], task.prompt.item.cut
    before, after = (part.format_map(item) for part in task.prompt.item.template.split(f"{{{cut}}}"))
    join = ", and " if len(items) > 1 else ""
    if not shown.startswith(before):
        return False
    rest = shown[len(before) :]
    ends = (end for end in range(len(item[cut]) + 1) if rest.startswith(item[cut][:end] + after + join))
    return any(is_cut_from(task, rest[end + len(after + join) :], items[1:]) for end in ends)


@given(
    ANY_TASK.filter(lambda task: task.prompt.after is None),
    st.lists(TEXTS.map(clean), max_size=5),
    st.integers(120, 300),
)
def test_every_item_shows_the_beginning_of_its_own_text(task, texts, max_length):
    question = question_of(task, "of today")
    items = [item_of(task, text) for text in texts]
    prompt = build(task, question, items, max_length)
    assume(prompt.used_items > 0)
    assert is_cut_from(task, prompt.text.removesuffix(task.prompt.separator + question), items[: prompt.used_items])
