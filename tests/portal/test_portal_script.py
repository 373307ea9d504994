"""Scripts in every text that can come from a file or a visitor: none runs, and each is shown as text."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from portal_data import write_archive

pytest.importorskip("panel", reason="the portal's packages are not installed: nenya[portal]")

from nenya.io import write_table
from nenya.latents.files import Latents
from nenya.options.commands import PortalOptions
from nenya.portal.dataset import open_dataset

RUN = "window.ran=(window.ran||0)+1"
SCRIPTS = [
    f'<img src=x onerror="{RUN}">',
    f"<script>{RUN}</script>",
    f'"><svg onload="{RUN}">',
    f"'><svg onload='{RUN}'>",
    f"</script><script>{RUN}</script>",
    f"javascript:{RUN}",
    rf"$$\href{{javascript:{RUN}}}{{x}}$$",
    rf"\(\href{{javascript:{RUN}}}{{x}}\)",
    f"{{{{ ''.__class__ }}}}{{% raw %}}<img src=x onerror='{RUN}'>",
    f"</title></style></textarea><img src=x onerror={RUN}>",
]
NUMBER, CATEGORY, TEXT = f"n {SCRIPTS[0]}", f"c {SCRIPTS[2]}", f"t {SCRIPTS[3]}"
MATH = f"m {SCRIPTS[6]}"
NAME = f"x {SCRIPTS[0]}".replace("/", "")


def write_hostile(folder):
    """Write an archive whose every text is a script; return its paths."""
    table, vectors, cutouts = write_archive(folder)
    frame = pd.read_parquet(table)
    rows = np.arange(len(frame))
    frame["filename"] = [f"{SCRIPTS[i // 5 % len(SCRIPTS)]} {i // 5}" for i in rows]
    frame["region"] = [SCRIPTS[i % len(SCRIPTS)] for i in rows]
    frame["UID"] = [f"{SCRIPTS[i % len(SCRIPTS)]} {i}" for i in rows]
    frame["cluster"] = [f"{SCRIPTS[i % 3]} cluster" for i in rows]
    frame[NUMBER] = frame[MATH] = np.linspace(0, 1, len(frame)) ** 2
    frame[CATEGORY] = [SCRIPTS[(i + 1) % len(SCRIPTS)] for i in rows]
    frame[TEXT] = [f"{SCRIPTS[(i + 2) % len(SCRIPTS)]} {i}" for i in rows]
    hostile = folder / f"{NAME}.parquet"
    write_table(frame[[NUMBER, MATH, *(name for name in frame if name not in (NUMBER, MATH))]], hostile)
    return hostile, vectors, cutouts


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    table, vectors, cutouts = write_hostile(tmp_path_factory.mktemp("hostile"))
    dataset = open_dataset(table, Latents([vectors]), str(cutouts))
    dataset.notes.append(SCRIPTS[0])
    return dataset


class _Tags(HTMLParser):
    """The elements of a page with their attributes, as a browser reads them."""

    def __init__(self, text):
        super().__init__()
        self.found, self.events = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.events += [
            (tag, name)
            for name, value in attrs
            if name.startswith("on") or (name in ("href", "src", "action") and "javascript:" in (value or ""))
        ]


def check_inert(text):
    tags = _Tags(text)
    assert tags.events == [], tags.events
    assert not {"img", "svg", "script"} & set(tags.found), set(tags.found)


def test_no_text_of_the_page_makes_an_element(hostile):
    from nenya.portal import words
    from nenya.portal.state import Category, make_range
    from nenya.portal.summary import summarise
    from nenya.portal.upload import Upload

    rows = hostile.columns.take(np.arange(30)).to_pylist()
    image = np.arange(256, dtype=np.float32).reshape(16, 16)
    upload = Upload(SCRIPTS[0], image, np.zeros(3, np.float32), side=16, source=SCRIPTS[2])
    chosen = [make_range(NUMBER, 0, 1), Category(CATEGORY, tuple(SCRIPTS)), Category(SCRIPTS[3], ("a",))]
    for text in (
        *(words.facts(row, 3) for row in rows), words.table(rows, range(30), 0, 30), words.upload_facts(upload),
        words.near_list(rows, range(30), [0.5] * 30), words.chips(chosen), words.chips([]), words.heading(*SCRIPTS[:2]),
        words.statistics(summarise(hostile.columns, np.arange(300) < 9), False), words.count(1, 2),
        *(words.chips([Category(script, (script,))]) for script in SCRIPTS),
    ):  # fmt: skip
        check_inert(text)


def test_templates_escape_whatever_they_are_given():
    from nenya.portal import pages

    for script in SCRIPTS:
        text = pages.render("notice.html", nonce="n", trouble=script, form=True)
        assert RUN not in re.sub(r"&[#a-z0-9]+;", "", text) or "<p>" in text
        tags = _Tags(text)
        assert tags.events == [] and set(tags.found) <= {
            "html", "head", "meta", "title", "link", "style", "body", "h1", "p", "form", "label", "input", "button",
        }  # fmt: skip


def test_figures_take_no_text_for_mathematics():
    from bokeh.models import LinearColorMapper

    from nenya.portal.theme import Theme, bar_of, plain

    for script in (*SCRIPTS, "$$$$x$$$$", r"\[x\]", r"a \(b\) $$c$$"):
        for text in (plain(script), bar_of(LinearColorMapper(), Theme(), script).title):
            assert "$$" not in text and r"\(" not in text and r"\[" not in text
            assert text.replace("\N{WORD JOINER}", "") == script
    assert plain("DT = T90 - T10 (K)") == "DT = T90 - T10 (K)"


def test_the_page_of_metrics_runs_nothing(tmp_path):
    from nenya.plotting.metrics_page import page

    picture = tmp_path / "a.svg"
    picture.write_text("<svg xmlns='http://www.w3.org/2000/svg' onload='window.ran=1'></svg>")
    results = {"made_by": {s: s for s in SCRIPTS}, "pca_file": SCRIPTS[0], "provenance": {s: [s] for s in SCRIPTS}}
    text = page(SCRIPTS[0], {s: s for s in SCRIPTS}, results, {SCRIPTS[2]: picture})
    tags = _Tags(text)
    assert tags.events == [] and not {"script", "svg"} & set(tags.found) and tags.found.count("img") == 1
    assert "default-src 'none'" in text and "script-src" not in text


def test_the_exported_page_allows_the_scripts_that_it_has_and_no_others(hostile, tmp_path):
    import base64
    import hashlib
    import html

    from nenya.portal.export import write_page

    text = write_page(hostile, tmp_path / "page", NAME, PortalOptions(sample=50)).read_text()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts}
    assert hashes == set(re.search(r"script-src ([^;]*);", policy)[1].split()) and len(scripts) == 6
    assert "unsafe" not in policy and "default-src 'none'" in policy and "http" not in policy
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert re.search(r"style-src ([^;]*);", policy)[1] == f"'sha256-{digest}'"
    assert " style=" not in text.split("<body>")[1]
    tags = _Tags(re.sub(r"<script[^>]*>.*?</script>", "", text, flags=re.S))
    assert tags.events == [] and "svg" not in tags.found and "script" not in tags.found


def test_an_exported_page_replaces_a_page_and_nothing_else(hostile, tmp_path):
    from nenya.errors import OutputError
    from nenya.portal.export import write_page

    options = PortalOptions(sample=5, clobber=True)
    place = write_page(hostile, tmp_path / "page", NAME, options)
    assert write_page(hostile, tmp_path / "page", NAME, options) == place
    (tmp_path / "page" / "thesis.tex").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "page")
    (tmp_path / "file").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    for name, said in (("page", r"holds files other .*thesis\.tex"), ("link", "is a link"), ("file", "is a file")):
        with pytest.raises(OutputError, match=said):
            write_page(hostile, tmp_path / name, NAME, options)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "file").read_text() == "kept"


def test_downloads_of_hostile_tables_have_plain_names_and_exact_values(hostile):
    """A CSV keeps the values as they are; the names of files are the portal's own."""
    import asyncio
    import io

    from portal_data import settings_of
    from test_portal_safe import ask, talk

    from nenya.portal.holding import Portal
    from nenya.portal.state import make_category

    async def work(port):
        key = settings_of((await ask(port, "")).body.decode())["key"]
        session = portal.sessions[key]
        for _ in range(200):
            if session.gallery_picture is not None:
                break
            await asyncio.sleep(0.05)
        session.selection.add(make_category(CATEGORY, [SCRIPTS[6], SCRIPTS[0]]))
        return [
            await ask(port, f"download?key={key}&what={what}") for what in ("rows.csv", "rows.parquet", "gallery.png")
        ]

    portal = Portal(hostile, NAME)
    answers = talk(portal, work)
    assert [answer.code for answer in answers] == [200, 200, 200]
    for answer, name in zip(answers, ("rows.csv", "rows.parquet", "gallery.png"), strict=True):
        assert answer.headers["Content-Disposition"] == f'attachment; filename="nenya_{name}"'
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    table, other = pd.read_csv(io.BytesIO(answers[0].body)), pd.read_parquet(io.BytesIO(answers[1].body))
    assert set(table[CATEGORY]) == {SCRIPTS[6], SCRIPTS[0]} and list(table[TEXT]) == list(other[TEXT])
    assert answers[2].body[:4] == b"\x89PNG"
