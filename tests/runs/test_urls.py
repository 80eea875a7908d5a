"""URLs: one spelling or an error; messages show URLs, not the paths of local copies."""

import dataclasses
import re
import typing

import pytest

from lamp_jax import cli
from lamp_jax.errors import LampError
from lamp_jax.runs import remote
from lamp_jax.runs.urls import READ, WRITTEN, copy_path, split_url, url_of, with_urls

NO_PATHS = {
    "beam_options",
    "beam_staging",
    "against",
    "columns",
    "compilation_cache",  # a directory of this machine, or `off`
    "config",
    "date_format",
    "encoding",
    "map",
    "mirrors",
    "options",
    "task",
    "tasks",
    "topology",
    "user",
}
"""Options with texts that name no file or directory, or a file that the stage does not read itself."""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("gs://b/run", ("", "gs://b/run")),
        ("bm25=gs://b/run/", ("bm25=", "gs://b/run")),
        ("gs://b//x/./y//", ("", "gs://b/x/y")),
        ("GS://b/X", ("", "gs://b/X")),
        ("gcs://b/x", ("", "gs://b/x")),
        ("memory://run", ("", "memory://run")),
        ("memory:///run/", ("", "memory://run")),
        ("gs://b/a=b/r[1] x", ("", "gs://b/a=b/r[1] x")),
        ("file:///d/x/", ("", "/d/x")),
        ("none=file:///d//./x", ("none=", "/d/x")),
        ("local:///d/...", ("", "/d/...")),
        ("/d/gs:/x", None),
        ("google/flan-t5-base", None),
        ("https://example.org/page", None),
        ("", None),
    ],
)
def test_a_url_has_one_spelling(given, expected):
    assert split_url(given) == expected


@pytest.mark.parametrize(
    "url",
    [
        *(
            "file://.",
            "file://",
            "file://q.json",
            "file://./q.json",
            "file://localhost/q.json",
            "file:///",
            "file:////./",
        ),
        *("file:///d/..", "file:///d/../x", "gs://", "gs://b", "gs://b/", "gs://b/.", "gs://b/..", "gs://b/../c/x"),
        *("bm25=file://.", "memory://", "memory:///", "memory://.", "zip://y.json::/d/x.zip", "gs://b/a::b"),
    ],
)
def test_a_url_without_a_unique_location_is_refused(url):
    with pytest.raises(LampError, match=rf"^{url.removeprefix('bm25=')}: .*(; |give )"):
        split_url(url)


@pytest.mark.parametrize("url", ["gs://b/run", "gs://b/runs/.r[1] x/p.json", "memory://run"])
@pytest.mark.parametrize("kind", [READ, WRITTEN])
def test_the_url_is_derived_from_the_path_of_a_copy(url, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path, above = copy_path(url, kind), url.rpartition("/")[0]
    assert url_of(path) == url
    assert url_of(path, READ) == (url if kind == READ else None)
    assert url_of(path / "deep" / "::x") == f"{url}/deep/::x"
    assert url_of(path.with_name("p.scores.json")) == f"{above}/p.scores.json"
    assert url_of(tmp_path / "x") is None
    assert with_urls({str(path): [f"no {path} and {path}.x, line 3", 1]}) == {url: [f"no {url} and {url}.x, line 3", 1]}


def test_every_option_with_a_text_is_classified_as_path_or_not():
    for stage in cli.STAGES.values():
        hints = typing.get_type_hints(stage)
        for field in dataclasses.fields(stage):
            if "str" in str(hints[field.name]) and "Literal" not in str(hints[field.name]):
                named = {field.name, f"{stage.__name__}.{field.name}"}
                assert named & (remote.INPUTS | remote.OUTPUTS | NO_PATHS), f"{stage.__name__}.{field.name}"
    assert not NO_PATHS & (remote.INPUTS | remote.OUTPUTS)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gs://b/x", r"pip install -e '\.\[gcs\]'"),
        ("s3://b/x", "pip install s3fs"),
        ("abfs://b/x", "pip install adlfs"),
        ("ssh://h/x", "pip install paramiko"),
        ("nothing://b/x", "give a local path, or a URL such as gs://BUCKET/run"),
        ("github://o/y.json", "give a local path, or a URL"),
        ("dir://o/y.json", "give a local path, or a URL"),
        ("hf://datasets/x/y.json", ""),
        ("ftp://localhost:1/y", ""),
        ("github://y.json", "complete"),
        ("zip://y.json", "complete"),
    ],
)
def test_a_file_system_that_cannot_be_used_is_an_error_with_the_url(url, said, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["check", url]) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"lamp: {url}: ")
    assert re.search(said, error)
    assert "Traceback" not in error
