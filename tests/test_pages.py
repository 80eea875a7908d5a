"""README pages: valid links and anchors, a short front page whose Python runs, a heading for every command."""

import ast
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

import lamp_jax
from lamp_jax import cli
from lamp_jax.options import STAGES

ROOT = Path(__file__).parents[1]
FRONT = ROOT / "README.md"
# Not rglob from the root: environments and caches below it have README files of their own.
PAGES = [FRONT, *sorted(ROOT.glob("[!.]*/README.md")), *sorted(ROOT.glob("lamp_jax/*/**/README.md"))]
MACHINE_PATH = re.compile(r"(?<![\w.~/])/(home|mnt|private|root|tmp|Users|work|workspace)\b")
MOST_LINES = 130  # of the front page


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def headings(text: str) -> list[str]:
    return re.findall(r"^#{1,6} +(.+?) *$", without_code(text), re.MULTILINE)


def anchors(text: str) -> set[str]:
    """GitHub's anchors: lower case, no punctuation but hyphens, spaces as hyphens; a repeated one gets a number."""
    found, seen = set(), Counter()
    for heading in headings(text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link is its text
        anchor = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", without_code(text))


def test_anchors_are_those_of_github():
    text = "# What fits: `lamp compile`\n## A\n```\n# no heading\n```\n## A\n### [T5](x.md), 2 cores\n"
    assert anchors(text) == {"what-fits-lamp-compile", "a", "a-1", "t5-2-cores"}


def test_every_folder_has_its_page():
    folders = ["lamp_jax", "lamp_jax/stages", "lamp_jax/datasets"]
    folders += ["launch", "configs", "benchmarks", "notebooks", "tests"]
    assert {FRONT, *(ROOT / folder / "README.md" for folder in folders)} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_and_anchors_resolve(page: Path):
    for link in links(read(page)):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            assert target.suffix == ".md", link
            assert anchor in anchors(read(target)), link


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_a_page_begins_with_a_title_and_a_sentence(page: Path):
    first, blank, second, *_ = read(page).splitlines()
    assert re.match(r"# \w", first)
    assert not blank
    assert re.match(r"\w", second), "a sentence, not a list or a heading"


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_no_page_names_a_path_of_one_machine(page: Path):
    assert not [line for line in read(page).splitlines() if MACHINE_PATH.search(line)]


def test_every_page_is_reached_from_the_front_page():
    reached = {(FRONT.parent / link.partition("#")[0]).resolve() for link in links(read(FRONT))}
    assert set(PAGES) - {FRONT} <= reached


def test_the_front_page_is_short():
    assert len(read(FRONT).splitlines()) <= MOST_LINES


@pytest.mark.parametrize("stage", STAGES)
def test_every_command_has_a_heading_and_is_on_the_front_page(stage: str):
    page = ROOT / "lamp_jax" / "stages" / "README.md"
    assert f"lamp {stage}" in headings(read(page))
    assert f"lamp_jax/stages/README.md#lamp-{stage.replace(' ', '-')}" in links(read(FRONT))


@pytest.mark.parametrize("config", sorted(path.name for path in (ROOT / "configs").glob("*.py")))
def test_every_config_page_is_listed(config: str):
    assert config in links(read(ROOT / "configs" / "README.md"))


def test_the_python_of_the_front_page_runs(tmp_path: Path, monkeypatch, capsys):
    """On the files of `lamp demo`, with another small model."""
    (block,) = re.findall(r"^```python\n(.*?)^```", read(FRONT), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    synth = ["synth", "--task", "LaMP-2", "--questions", "8", "--dev-questions", "8", "--output", "demo/data"]
    assert cli.main(synth) == 0
    shutil.copytree(ROOT / "tests" / "cases" / "tiny" / "t5_ft", "demo/model")
    capsys.readouterr()
    exec(compile(block, str(FRONT), "exec"), {})
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["retriever", "accuracy", "95", "%", "interval", "p", "vs", "none"]
    assert [row.split()[0] for row in rows] == ["none", "bm25"]
    assert all(0 <= float(row.split()[1]) <= 1 for row in rows)


@pytest.mark.parametrize("page", [page for page in PAGES if page != FRONT and "```python" in read(page)], ids=title)
def test_the_python_of_other_pages_uses_existing_names(page: Path):
    for block in re.findall(r"^```python\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "lamp":
                assert node.attr in lamp_jax.__all__, node.attr


def test_the_citation_names_the_papers():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["cff-version"], citation["title"]) == ("1.2.0", "lamp_jax")
    assert {"message", "authors"} <= set(citation)
    urls = [reference["url"] for reference in citation["references"]]
    papers = ["2304.11406", "2404.05970", "2409.09510"]
    assert urls == [f"https://arxiv.org/abs/{paper}" for paper in papers]
    assert all(paper in read(FRONT) for paper in papers)
