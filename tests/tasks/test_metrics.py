"""Metrics: equal to manual results and scikit-learn's, for any answers, in any order."""

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_jax.config import CORRECT, REFERENCE
from lamp_jax.errors import LampError
from lamp_jax.tasks.catalog import TASKS, find_task
from lamp_jax.tasks.metrics import extra_metrics, main_metric, paired_test, read_number, score

LABEL_TASKS = [task for task in TASKS.values() if task.labels]
TAGS = find_task("LaMP-2").labels
TEXT_TASKS = [task for task in TASKS.values() if not task.labels]
LABELS = st.sampled_from(("1", "2", "3", "4", "5"))
NUMBERS = st.one_of(LABELS, st.floats(-9, 9).map(str), st.sampled_from(["", "five", "nan", "-inf", " 2 \n"]))
WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", ",", "Héllo", "नमस्ते\u0085", "2"]), max_size=8).map(
    " ".join
)


def scores(name, pairs, **options):
    """Scores of a list of (prediction, gold), with ids "0", "1", ..."""
    predictions = {str(place): prediction for place, (prediction, _) in enumerate(pairs)}
    golds = {str(place): gold for place, (_, gold) in enumerate(pairs)}
    return score(find_task(name), predictions, golds, **{"compatibility": CORRECT, **options})


# Label tasks.


def test_accuracy_ignores_surrounding_white_space():
    found = scores("LaMP-2", [(" comedy\n", "comedy"), ("COMEDY", "comedy"), ("action", " action"), ("", "classic")])
    assert found.value == found.mean["accuracy"] == 0.5
    assert found.samples == {"0": 1.0, "1": 0.0, "2": 1.0, "3": 0.0}
    assert found.invalid == ("1", "3")


def test_f1_is_the_mean_over_all_labels_of_the_task():
    found = scores("LaMP-1", [("[1]", "[1]"), ("[1]", "[2]"), ("no", "[2]"), ("[2]", "[2]")])
    # [1]: precision 1/2, recall 1; [2]: precision 1, recall 1/3.
    assert found.mean["f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores("LaMP-2", [("comedy", "comedy")]).mean["f1"] == pytest.approx(1 / 15)


def test_an_answer_outside_the_labels_is_wrong_and_a_gold_outside_is_an_error():
    assert scores("LaMP-1", [("[3]", "[2]")]).value == 0
    with pytest.raises(LampError, match=r"LaMP-1, question '1': the reference '\[3\]' is not a label of the task"):
        scores("LaMP-1", [("[1]", "[1]"), ("[3]", "[3]")])


@pytest.mark.parametrize("task", LABEL_TASKS, ids=lambda task: task.name)
def test_perfect_answers_are_perfect_for_every_label_task(task):
    found = scores(task.name, [(label, label) for label in task.labels])
    assert found.mean == ({"accuracy": 1, "f1": 1} if task.metric == "accuracy" else {"MAE": 0, "RMSE": 0})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*TAGS[:5], "", "other"]), st.sampled_from(TAGS)), min_size=1))
def test_accuracy_and_f1_equal_scikit_learn(pairs):
    from sklearn.metrics import accuracy_score, f1_score

    answers, golds = zip(*pairs, strict=True)
    found = scores("LaMP-2", pairs)
    assert found.mean["accuracy"] == pytest.approx(accuracy_score(golds, answers))
    assert found.mean["f1"] == f1_score(golds, answers, labels=list(TAGS), average="macro", zero_division=0)


# LaMP-3.


@pytest.mark.parametrize(
    ("answer", "gold", "number"),
    [
        *[("", 1, 5), ("five", 2, 5), ("five", 3, 5), ("nan", 4, 1), ("inf", 5, 1), ("-inf", 5, 1), ("1e99", 5, 1)],
        *[("3.7", 1, 3.7), ("1e0", 5, 1), ("0", 1, 0), ("1e9", 1, 1e9), ("-2", 3, -2)],
    ],
)
def test_numbers_are_unchanged_and_other_answers_count_as_the_farthest_label(answer, gold, number):
    assert read_number(answer, gold) == number


def test_mae_and_rmse_of_hand_computed_answers():
    found = scores("LaMP-3", [("5", "5"), ("3.5", "3"), ("great", "2"), ("9", "5")])
    assert found.samples == {"0": 0, "1": 0.5, "2": 3, "3": 4}
    assert found.mean == {"MAE": pytest.approx(7.5 / 4), "RMSE": pytest.approx(math.sqrt(25.25 / 4))}
    assert found.metric == "MAE"
    assert found.invalid == ("2",)


def test_clipping_limits_numbers_to_the_scale():
    pairs = [("9", "5"), ("-1", "2"), ("3.5", "3"), ("?", "1")]
    assert scores("LaMP-3", pairs, out_of_range="clip").samples == {"0": 0, "1": 1, "2": 0.5, "3": 4}
    assert scores("LaMP-3", pairs).samples == {"0": 4, "1": 3, "2": 0.5, "3": 4}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NUMBERS, LABELS), min_size=1, max_size=20))
def test_mae_and_rmse_equal_scikit_learn(pairs):
    from sklearn.metrics import mean_absolute_error, root_mean_squared_error

    answers = [read_number(answer, float(gold)) for answer, gold in pairs]
    golds = [float(gold) for _, gold in pairs]
    found = scores("LaMP-3", pairs)
    assert found.mean["MAE"] == pytest.approx(mean_absolute_error(golds, answers))
    assert found.mean["RMSE"] == pytest.approx(root_mean_squared_error(golds, answers))
    assert 0 <= found.mean["MAE"] <= found.mean["RMSE"] * (1 + 1e-12)


# Tasks that generate text.


def test_rouge_of_hand_computed_answers():
    found = scores(
        "LaMP-4", [("The cat, the mat!", "the mat the cat sat"), ("running", "run"), ("", "a")], extra=["rouge-2"]
    )
    assert found.per_sample["rouge-1"] == {"0": pytest.approx(8 / 9), "1": 0, "2": 0}  # no stemmer
    # Two of four words are in order; `the cat` and `the mat` of three and four pairs are shared.
    assert found.per_sample["rouge-L"]["0"] == pytest.approx(4 / 9)
    assert found.per_sample["rouge-2"]["0"] == pytest.approx(4 / 7)
    assert found.value == pytest.approx(8 / 27)


def test_rouge_lsum_splits_sentences_at_line_ends():
    found = scores("LaMP-4", [("c d\na b", "a b\nc d")], extra=["ROUGE-Lsum"])
    assert found.mean["rouge-LSum"] == 1
    assert found.mean["rouge-L"] == 0.5
    # U+0085 separates no lines.
    assert scores("LaMP-4", [("c d\u0085a b", "a b\u0085c d")], extra=["rouge-lsum"]).mean["rouge-LSum"] == 0.5


def test_the_bootstrap_variant_is_near_the_mean_and_exact_for_one_question():
    pairs = [("the cat sat", "the cat " + "sat " * (place % 4)) for place in range(40)]
    plain, bootstrap = (scores("LaMP-5", pairs, compatibility=mode) for mode in (CORRECT, REFERENCE))
    assert bootstrap.per_sample == plain.per_sample
    assert bootstrap.value == pytest.approx(plain.value, abs=0.02)
    assert bootstrap.value != plain.value
    assert scores("LaMP-5", pairs[:1], compatibility=REFERENCE).mean == scores("LaMP-5", pairs[:1]).mean


def test_bleu_is_computed_for_the_corpus_and_for_each_question():
    same, other = ("the cat sat on the mat", "the cat sat on the mat"), ("a dog", "the cat sat on the mat")
    found = scores("LaMP-7", [same, other], extra=["bleu"])
    assert found.per_sample["bleu"] == {"0": pytest.approx(100), "1": 0}
    # Precision from 4-grams to words: 3/3, 4/4, 5/6, 6/8; 8 words where the reference has 12.
    expected = 100 * math.exp(1 - 12 / 8) * (6 / 8 * 5 / 6) ** 0.25
    assert found.mean["bleu"] == pytest.approx(expected)


@pytest.fixture
def meteor_data(monkeypatch):
    """Replaces nltk's data: a text is a single sentence, and there is a pair of synonyms."""
    import nltk.tokenize
    from nltk.translate import meteor_score

    class Lemma:
        def name(self):
            return "hound"

    class Synset:
        def lemmas(self):
            return [Lemma()]

    monkeypatch.setattr(nltk.tokenize, "sent_tokenize", lambda text, language: [text])
    monkeypatch.setitem(vars(meteor_score.wordnet), "synsets", lambda word: [Synset()] if word == "dog" else [])


@pytest.mark.usefixtures("meteor_data")
def test_meteor_of_hand_computed_answers():
    pairs = [("alpha beta", "alpha beta"), ("", "alpha"), ("one cats", "one cat"), ("a dog", "a hound")]
    found = scores("LaMP-6", pairs, extra=["meteor"])
    both = 1 - 0.5 * (1 / 2) ** 3  # two matches in one chunk; stems and synonyms match too
    assert found.per_sample["meteor"] == pytest.approx({"0": both, "1": 0, "2": both, "3": both})


def test_the_error_about_missing_meteor_data_names_the_remedy(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(LampError, match=r"python -m nltk.downloader wordnet punkt_tab"):
        scores("LaMP-4", [("a b", "a b")], extra=["meteor"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_rouge_and_bleu_stay_in_bounds_and_are_symmetric_where_they_should_be(pairs):
    found = scores("LaMP-4", pairs, extra=["rouge-2", "rouge-lsum", "bleu"])
    for name, by_id in found.per_sample.items():
        top = 100 + 1e-9 if name == "bleu" else 1
        assert all(0 <= value <= top for value in [*by_id.values(), found.mean[name]])
    swapped = scores("LaMP-4", [(gold, answer) for answer, gold in pairs])
    assert swapped.mean == pytest.approx({name: found.mean[name] for name in swapped.mean})


@pytest.mark.parametrize("task", TEXT_TASKS, ids=lambda task: task.name)
def test_perfect_answers_are_perfect_for_every_text_task(task):
    pairs = [
        ("The cat sat on the mat.", "the cat sat on the mat"),
        ("Another one, of 4 words", "another one of 4 words"),
    ]
    assert scores(task.name, pairs, extra=["rouge-2"]).mean == {"rouge-1": 1, "rouge-L": 1, "rouge-2": 1}


# All tasks.


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(NUMBERS, LABELS), min_size=1, max_size=12),
    st.lists(st.tuples(WORDS, WORDS), min_size=1),
    st.randoms(),
)
def test_the_order_of_ids_does_not_matter(numbers, texts, random):
    for name, pairs in (("LaMP-3", numbers), ("LaMP-7", texts)):
        keys = [str(place) for place in range(len(pairs))]
        answers = {key: answer for key, (answer, _) in zip(keys, pairs, strict=True)}
        golds = {key: gold for key, (_, gold) in zip(keys, pairs, strict=True)}
        random.shuffle(keys)
        turned = {key: golds[key] for key in keys}
        shuffled = score(find_task(name), answers, turned, compatibility=REFERENCE)
        assert shuffled == score(find_task(name), answers, golds, compatibility=REFERENCE)


def test_missing_and_extra_ids_are_counted_and_named():
    task = find_task("LaMP-3")
    golds = {str(place): "1" for place in range(9)}
    with pytest.raises(
        LampError, match=r"7 questions have no prediction \(2, 3, 4, 5, 6, \.\.\.\); 1 predictions .* \(x\)"
    ):
        score(task, {"0": "1", "1": "1", "x": "1"}, golds, compatibility=CORRECT)
    with pytest.raises(LampError, match="no references"):
        score(task, {}, {}, compatibility=CORRECT)


def test_an_extra_metric_that_does_not_fit_the_task_is_an_error():
    with pytest.raises(LampError, match="LaMP-3 has no metric 'bleu': choose from mae, rmse"):
        scores("LaMP-3", [("1", "1")], extra=["bleu"])
    with pytest.raises(LampError, match="LaMP-4 has no metric 'chrf'"):
        scores("LaMP-4", [("1", "1")], extra=["chrf"])
    assert extra_metrics(find_task("LaMP-3")) == ()
    assert extra_metrics(find_task("LaMP-6")) == ("rouge-2", "rouge-LSum", "bleu", "meteor")


def test_an_official_metric_may_be_given_as_an_extra_metric():
    assert scores("LaMP-4", [("a", "a")], extra=["rouge-l", "ROUGE-1"]).mean == {"rouge-1": 1, "rouge-L": 1}


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_each_task_has_its_main_metric(task):
    assert main_metric(task).lower() == task.metric


def test_the_paired_test_of_each_metric_is_that_of_the_papers():
    first, second = {"a": 1.0, "b": 0.0, "c": 1.0}, {"a": 0.0, "b": 0.0, "c": 1.0}
    assert "McNemar" in paired_test("accuracy", first, second).method
    assert "t-test" in paired_test("MAE", first, second).method
    with pytest.raises(LampError, match="no paired test for 'f1'"):
        paired_test("f1", first, second)


def test_importing_the_metrics_loads_no_slow_library():
    code = (
        "import sys, lamp_jax.tasks.metrics; print({'sklearn', 'nltk', 'sacrebleu', 'scipy', 'jax'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_rouge_imports_nltk_only_for_what_is_used_of_it():
    code = """
import sys
from lamp_jax.tasks.rouge import rouge_scorer
assert rouge_scorer(["rougeL"]).score("a b c", "a c")["rougeL"].recall == 2 / 3
assert not {"nltk", "nltk.stem", "sklearn", "scipy"} & set(sys.modules)
from rouge_score import rouge_scorer as library
assert library.RougeScorer(["rouge1"], use_stemmer=True).score("running", "runs")["rouge1"].fmeasure == 1
import nltk
assert library.nltk.sent_tokenize is nltk.sent_tokenize and nltk.stem.PorterStemmer
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_golds_keep_their_ids_in_the_scores():
    golds = {"011857": "[1]", "11857": "[2]"}
    assert score(find_task("LaMP-1"), golds, golds, compatibility=CORRECT).samples == {"011857": 1, "11857": 1}
