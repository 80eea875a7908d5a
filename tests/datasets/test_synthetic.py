"""Properties of the synthetic benchmark: format, oracle, balance, and no leaks."""

import itertools
import json
import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lamp_jax.data.files import read_outputs, read_questions
from lamp_jax.datasets import synthetic
from lamp_jax.datasets.lexicon import LEXICON, TOPICS
from lamp_jax.datasets.synthetic import GROUPS, generate, write_benchmark
from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import TASKS

MOVIES = TASKS["LaMP-2"]
POOL = ("none", "recency", "bm25", "dense")
TOPIC_OF = {word: topic for dialect in LEXICON.topics for topic, words in enumerate(dialect) for word in words}
STYLE_OF = {words: style for style, words in enumerate(LEXICON.styles)}
all_tasks = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def benchmark(task=MOVIES, *, questions=600, profile_size=24, seed=0, split="dev"):
    return list(generate(task, questions=questions, profile_size=profile_size, seed=seed, split=split))


def topic_of(text):
    return Counter(TOPIC_OF[word] for word in text.split() if word in TOPIC_OF).most_common(1)[0][0]


def bm25_scores(query, documents):
    """Okapi BM25 with k1 = 1.5, b = 0.75, for words that occur once in a document."""
    lengths = [len(document) for document in documents]
    mean = sum(lengths) / len(lengths)
    frequency = Counter(word for document in documents for word in set(document))
    idf = {word: max(0.1, math.log((len(documents) - n + 0.5) / (n + 0.5))) for word, n in frequency.items()}
    return [
        sum(idf[word] * 2.5 / (1 + 1.5 * (0.25 + 0.75 * length / mean)) for word in query if word in document)
        for document, length in zip(documents, lengths, strict=True)
    ]


def retrieve(task, question, retriever, rng):
    """Four items. `dense` knows what words mean: it matches the question's topic in both vocabularies."""
    items = rng.sample(question.profile, len(question.profile))
    query = task.query(question.input)
    if retriever == "none":
        return []
    if retriever == "recency":
        items.sort(key=lambda item: item["date"], reverse=True)
    elif retriever == "bm25":
        scores = bm25_scores(query.split(), [task.document_of(item).split() for item in items])
        items = [items[i] for i in np.argsort(np.negative(scores), kind="stable")]
    elif retriever == "dense":
        items.sort(key=lambda item: topic_of(item[task.source]) != topic_of(query))
    return items[:4]


def read(task, question, items, rng):
    """The most frequent answer of the items, ties at random; without items the majority answer of all users."""
    if not items:
        return task.labels[LEXICON.prior[topic_of(task.query(question.input))] % len(task.labels)]
    counts = Counter(item[task.target] for item in items)
    return rng.choice([answer for answer, count in counts.items() if count == max(counts.values())])


def hits(pairs, retriever, *, task=MOVIES):
    rng = random.Random(0)
    return np.array([read(task, q, retrieve(task, q, retriever, rng), rng) == q.output for q, _ in pairs])


@pytest.fixture(scope="module", params=(0, 1, 2))
def movies(request):
    return benchmark(seed=request.param)


@pytest.fixture(scope="module")
def table(movies):
    return {retriever: hits(movies, retriever) for retriever in (*POOL, "random")}


# ------------------------------------------------------------------------------------------------ balance and oracle


def test_bm25_is_the_best_single_retriever_and_random_lies_between_it_and_none(table):
    mean = {retriever: right.mean() for retriever, right in table.items()}
    assert 0.2 < mean["none"] < 0.3
    assert mean["none"] + 0.05 < mean["random"] < mean["bm25"] - 0.1
    assert mean["none"] + 0.1 < mean["recency"] < mean["bm25"] - 0.05
    assert 0.5 < mean["bm25"] < 0.65


def test_choosing_the_retriever_for_each_user_is_far_better_than_any_single_retriever(table):
    best_choice = np.any([table[retriever] for retriever in POOL], axis=0).mean()
    assert best_choice > 0.95
    assert max(table[retriever].mean() for retriever in POOL) < best_choice - 0.25


@pytest.mark.parametrize("retriever", POOL)
def test_every_retriever_is_the_only_right_choice_for_some_users(table, retriever):
    others = np.any([table[other] for other in POOL if other != retriever], axis=0)
    assert (table[retriever] & ~others).mean() > 0.03


@pytest.mark.parametrize("group", GROUPS)
def test_the_oracle_names_the_best_retriever_of_each_group(movies, table, group):
    members = np.array([known.group == group for _, known in movies])
    mean = {retriever: right[members].mean() for retriever, right in table.items()}
    best = GROUPS[group].best
    assert {known.best for _, known in movies if known.group == group} == {best}
    assert mean[best] > 0.95
    assert all(mean[other] < 0.8 for other in mean if other != best)


def test_shuffling_profiles_between_users_destroys_the_gain(movies):
    profiles = [question.profile for question, _ in movies]
    shuffled = [
        (replace(question, profile=profile), known)
        for (question, known), profile in zip(movies, profiles[1:] + profiles[:1], strict=True)
    ]
    chance = 1 / len(MOVIES.labels)
    for retriever in ("recency", "bm25", "dense", "random"):
        assert hits(shuffled, retriever).mean() < chance + 0.05


def test_the_relevant_items_contain_the_gold(movies):
    for question, known in movies:
        assert known.items == tuple(item["id"] for item in question.profile if item["tag"] == question.output)


def test_only_irrelevant_items_of_hidden_users_share_words_with_the_question(movies):
    misleading = []
    for question, known in movies:
        if known.group == "hidden":
            asked = set(MOVIES.query(question.input).split())
            shares = {item["id"]: bool(asked & set(item["description"].split())) for item in question.profile}
            assert known.items
            assert not any(shares[key] for key in known.items)
            misleading.append(sum(shares.values()))
    assert np.mean(np.array(misleading) >= 4) > 0.9


def test_relevant_items_of_topical_users_share_words_with_the_question(movies):
    shared = []
    for question, known in movies:
        if known.group == "topical":
            asked = set(MOVIES.query(question.input).split()) & set(TOPIC_OF)
            shared += [
                len(asked & set(item["description"].split())) for item in question.profile if item["id"] in known.items
            ]
    assert np.mean(np.array(shared) >= 1) > 0.98
    assert np.mean(shared) > 2


def test_the_newest_items_of_drifting_users_contain_the_gold(movies):
    right = []
    for question, known in movies:
        if known.group == "drifting":
            newest = sorted(question.profile, key=lambda item: item["date"])[-4:]
            right += [item["id"] in known.items for item in newest]
    assert np.mean(right) > 0.85


def test_no_item_of_a_misled_user_is_relevant(movies):
    for question, known in movies:
        if known.group == "misled":
            assert not known.items
            assert question.output == read(MOVIES, question, [], random.Random(0))


def test_any_twenty_consecutive_questions_have_every_group_in_its_share(movies):
    groups = [known.group for _, known in movies]
    for start in (0, 7, 133):
        assert Counter(groups[start : start + 20]) == {name: group.turns for name, group in GROUPS.items()}


# -------------------------------------------------------------------------------------------------------- no leaks


def accuracy_from_words(train, dev):
    """Accuracy on dev of naive Bayes that predicts the target from the question's words; (question, target) pairs."""
    share = Counter(target for _, target in train)
    counts = {target: Counter() for target in share}
    for question, target in train:
        counts[target].update(MOVIES.query(question.input).split())
    total = {target: sum(bag.values()) + 300 for target, bag in counts.items()}

    def predict(question):
        bag = MOVIES.query(question.input).split()
        return max(
            share,
            key=lambda t: math.log(share[t]) + sum(math.log((counts[t][word] + 1) / total[t]) for word in bag),
        )

    return np.mean([predict(question) == target for question, target in dev])


@pytest.fixture(scope="module")
def small_profiles():
    return [benchmark(questions=3000, profile_size=1, split=split) for split in ("train", "dev")]


def test_the_group_cannot_be_predicted_from_the_question(small_profiles):
    train, dev = ([(question, known.group) for question, known in pairs] for pairs in small_profiles)
    largest = max(group.turns for group in GROUPS.values()) / 20
    assert accuracy_from_words(train, dev) < largest + 0.03


def test_a_users_own_answer_cannot_be_predicted_from_the_question(small_profiles):
    train, dev = (
        [(question, question.output) for question, known in pairs if known.group != "misled"]
        for pairs in small_profiles
    )
    assert accuracy_from_words(train, dev) < 1 / len(MOVIES.labels) + 0.03


def test_the_majority_answer_can_be_predicted_from_the_question(small_profiles):
    train, dev = ([(question, question.output) for question, _ in pairs] for pairs in small_profiles)
    assert 0.2 < accuracy_from_words(train, dev) < 0.3


def test_an_items_words_predict_its_answer_only_within_a_users_profile(movies):
    """Over all users every topic occurs equally often with every tag."""
    counts = np.zeros((TOPICS, len(MOVIES.labels)))
    for question, _ in movies:
        for item in question.profile:
            counts[topic_of(item["description"]), MOVIES.labels.index(item["tag"])] += 1
    assert (counts.max(1) / counts.sum(1)).max() < 0.2


def test_relevant_items_are_recent_for_drifting_users_and_anywhere_in_the_file(movies):
    for group, moves in (("topical", False), ("drifting", True)):
        by_place, by_date = [], []
        for question, known in movies:
            if known.group == group:
                dates = sorted(item["date"] for item in question.profile)
                for place, item in enumerate(question.profile):
                    if item["id"] in known.items:
                        by_place.append(place / len(dates))
                        by_date.append(dates.index(item["date"]) / len(dates))
        assert abs(np.mean(by_place) - 0.48) < 0.04
        assert (np.mean(by_date) > 0.65) == moves


# ------------------------------------------------------------------------------------------------------ other tasks


@all_tasks
def test_every_task_has_its_own_format(task):
    for split, digit in (("train", "0"), ("dev", "1")):
        for index, (question, _) in enumerate(benchmark(task, questions=20, profile_size=8, split=split)):
            assert question.id == f"{int(task.official_name[-1]) - 1}{digit}{index}"
            assert task.query(question.input)
            assert question.output in task.labels or not task.labels
            assert 4 <= len(question.profile) <= 12
            for place, item in enumerate(question.profile):
                assert item["id"] == f"{question.id}{place}"
                assert set(item) == {*task.fields, "id", "date"}
            assert len({item["date"] for item in question.profile}) == len(question.profile)


@pytest.mark.parametrize("task", [task for task in TASKS.values() if not task.labels], ids=lambda task: task.name)
def test_texts_are_written_in_the_style_of_the_relevant_items(task):
    def style(text):
        return STYLE_OF[tuple(text.split()[:2])]

    for question, known in benchmark(task, questions=40):
        assert not set(task.query(question.input).split()) & set(itertools.chain(*STYLE_OF))
        assert set(question.output.split()[2:]) <= set(task.query(question.input).split())
        for item in question.profile:
            assert (style(item[task.target]) == style(question.output)) == (item["id"] in known.items)
        assert bool(known.items) == (known.group != "misled")


def test_the_right_reference_has_the_topic_of_the_user():
    task = TASKS["LaMP-1"]
    for question, known in benchmark(task, questions=60):
        references = [question.input.split('[1]: "')[1].split('"')[0], question.input.split('[2]: "')[1].rstrip('"')]
        gold = topic_of(references[task.labels.index(question.output)])
        for item in question.profile:
            on_topic = {topic_of(item["title"]) == gold, topic_of(item["abstract"]) == gold}
            assert on_topic == {item["id"] in known.items}


def test_scores_are_closer_with_the_items_of_bm25_than_without():
    task = TASKS["LaMP-3"]
    rng = random.Random(0)
    error = {"none": [], "bm25": []}
    for question, _ in benchmark(task):
        for retriever, errors in error.items():
            answer = read(task, question, retrieve(task, question, retriever, rng), rng)
            errors.append(abs(int(answer) - int(question.output)))
    assert np.mean(error["bm25"]) < np.mean(error["none"]) - 0.25


# ------------------------------------------------------------------------------------------------------ the generator


def test_a_question_depends_only_on_seed_split_and_index():
    pairs = benchmark(questions=30, profile_size=6)
    assert benchmark(questions=50, profile_size=6)[:30] == pairs
    assert all(a != b for a, b in zip(benchmark(questions=30, profile_size=6, seed=1), pairs, strict=True))
    assert all(
        a[0].profile != b[0].profile
        for a, b in zip(benchmark(questions=30, profile_size=6, split="train"), pairs, strict=True)
    )


def test_questions_are_generated_lazily():
    questions = generate(MOVIES, questions=10**15, profile_size=4, seed=0, split="train")
    assert next(questions)[0].id == "100"


def test_train_and_dev_have_no_user_in_common():
    users = [{question.user_id for question, _ in benchmark(questions=300, split=split)} for split in ("train", "dev")]
    assert all(len(ids) == 300 for ids in users)
    assert not users[0] & users[1]


def test_item_ids_collide_between_questions_as_in_real_files():
    ids = Counter(item["id"] for question, _ in benchmark(questions=120) for item in question.profile)
    assert max(ids.values()) > 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 200])
def test_profiles_have_half_to_one_and_a_half_times_the_size(size):
    sizes = [len(question.profile) for question, _ in benchmark(questions=60, profile_size=size)]
    assert min(sizes) >= max(1, size / 2)
    assert max(sizes) <= 1.5 * size
    assert abs(np.mean(sizes) - size) <= max(0.5, 0.1 * size)


def test_impossible_settings_are_an_error_at_once():
    with pytest.raises(LampError, match="at least 1"):
        generate(MOVIES, questions=0, profile_size=4, seed=0, split="dev")
    with pytest.raises(LampError, match="at least 1"):
        generate(MOVIES, questions=4, profile_size=0, seed=0, split="dev")
    with pytest.raises(LampError, match="train, dev"):
        generate(MOVIES, questions=4, profile_size=4, seed=0, split="test")  # pyright: ignore[reportArgumentType]


# ------------------------------------------------------------------------------------------------------------- files


@all_tasks
def test_written_files_have_the_official_format_and_the_generated_questions(tmp_path, task):
    write_benchmark(task, tmp_path, questions=30, profile_size=4, seed=3, dev_questions=7)
    oracle = json.loads((tmp_path / "oracle.json").read_text())
    for split, count in (("train", 30), ("dev", 7)):
        pairs = benchmark(task, questions=count, profile_size=4, seed=3, split=split)
        questions = read_questions(tmp_path / f"{split}_questions.json", task=task)
        outputs = read_outputs(tmp_path / f"{split}_outputs.json")
        assert questions == [replace(question, output=None) for question, _ in pairs]
        assert outputs == (task.official_name, {question.id: question.output for question, _ in pairs})
        for question, known in pairs:
            expected = {"items": list(known.items), "group": known.group, "best": known.best}
            assert oracle.pop(question.id) == expected
    assert not oracle


def test_dev_is_a_tenth_of_train_and_at_least_200():
    assert [synthetic.usual_dev_questions(n) for n in (1, 2000, 2019, 30000)] == [200, 200, 201, 3000]


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    folders = [tmp_path / name for name in ("once", "again", "other")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        write_benchmark(MOVIES, folder, questions=20, profile_size=4, seed=seed)
    once, again, other = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert len(once) == 5
    assert once == again
    assert all(once[name] != other[name] for name in once)


def test_a_failed_run_leaves_no_file(tmp_path, monkeypatch):
    made = generate(MOVIES, questions=5, profile_size=4, seed=0, split="train")

    def breaks_in_dev(task, *, split, **options):
        if split == "dev":
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(synthetic, "generate", breaks_in_dev)
    with pytest.raises(KeyboardInterrupt):
        write_benchmark(MOVIES, tmp_path, questions=5, profile_size=4, seed=0)
    assert list(tmp_path.iterdir()) == []
