"""Phrases that are hard to read: the list finds what it should, and the project has none of them."""

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
sys.path.append(str(DOCS))

import phrases  # noqa: E402  # docs/phrases.py


def found_in(text: str) -> list[str]:
    return [hit.phrase for hit in phrases.hits_of(phrases.Text(Path("a.md"), 1, text))]


@pytest.mark.parametrize(
    "text",
    [
        "latents of shape (3,) came; wanted is (N, D)",
        "there already and complete",
        "What is there already, made with the same weights, is skipped",
        "a latents file is there and whole",
        "the file is either complete, or not\nthere",
        "clobber=true makes it anew",
        "when what failed is mended, the same command does the rest",
        "the run goes on",
        "only what was asked for",
        "pickled maps do not work",
        "so their size does not count",
        "latents of 256 numbers",
    ],
)
def test_each_phrase_is_found_over_line_ends(text):
    assert found_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "The run resumes.",
        "expected latents of shape (N, D), got (3,)",
        "as a whole",
        "The mean of DT on a map",
        "recommend",
    ],
)
def test_plain_words_are_not_found(text):
    assert found_in(text) == []


def test_code_and_names_are_no_prose(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("One.\n\n```sh\necho anew\n```\n\n`whole=anew` and [anew](anew.md) <!-- anew -->\n")
    (text,) = phrases.texts_of_page(page)
    assert [hit.line for hit in phrases.hits_of(text)] == [7]
    module = tmp_path / "module.py"
    module.write_text('"""One anew.\n\nArgs:\n    whole: of rows, whole.\n"""\nkey = "whole"\nlog("made %s anew", 1)\n')
    hits = [hit for text in phrases.texts_of_source(module) for hit in phrases.hits_of(text)]
    assert sorted(hit.line for hit in hits) == [1, 4, 7]


def test_the_project_has_none_and_each_exception_is_needed(monkeypatch):
    allowed = dict(phrases.ALLOWED)
    assert all(allowed.values())
    monkeypatch.setattr(phrases, "ALLOWED", {})
    hits = [hit for text in phrases.all_texts() for hit in phrases.hits_of(text)]
    keys = [(hit.text.name, hit.phrase) for hit in hits]
    keys = [key if key in allowed else (key[0], None) if (key[0], None) in allowed else None for key in keys]
    assert [str(hit) for hit, key in zip(hits, keys, strict=True) if key is None] == []
    assert set(allowed) - set(keys) == set()


def test_long_sentences_are_advice():
    words = " ".join(["word"] * 40)
    text = phrases.Text(Path("a.md"), 1, f"Short. {words}. Short.\n\n| {words} |\n\n- {words[:60]}.\n")
    assert [len(sentence.split()) for sentence in phrases.long_sentences(text)] == [40]
