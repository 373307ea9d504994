"""Every block of the pages and of the README, run as a reader would; the tour, its pictures, and the site itself."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from reader import EXAMPLES, ROOT, fill_bucket, prepare_folder, prepare_library, prepare_run

DOCS = ROOT / "docs"
sys.path.append(str(DOCS))

import make_pictures  # noqa: E402  # docs/make_pictures.py
from pages import Block, blocks_of, reader_environment, run_block  # noqa: E402

pytestmark = pytest.mark.slow

PAGES = sorted([*DOCS.rglob("*.md"), *(p for p in ROOT.glob("*.md") if p.name != "CHANGELOG.md")])
RUNNING = [page for page in PAGES if page not in make_pictures.PAGES and any(block.runs for block in blocks_of(page))]
EMPTY = "<!-- begins in an empty folder -->"
ALONE = [page for page in RUNNING if EMPTY in page.read_text()]
"""Pages that say that they begin in an empty folder; the others speak of files that the reader has."""


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    prepare_folder(folder)
    return folder


@pytest.fixture
def bucket(s3_service):
    """A client of the service that has an empty `bucket`, which goes with all that is in it."""
    client = s3_service.client()
    client.create_bucket(Bucket="bucket")
    yield client
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="bucket")
    for key in [entry["Key"] for page in pages for entry in page.get("Contents", [])]:
        client.delete_object(Bucket="bucket", Key=key)
    client.delete_bucket(Bucket="bucket")


def programs(page: Path) -> list[Block]:
    """The blocks of a page that run; Python blocks of a page without commands are one program."""
    blocks = [block for block in blocks_of(page) if block.runs]
    if any(block.language == "sh" for block in blocks):
        return blocks
    return [Block(page, blocks[0].line, "python", "\n".join(block.text for block in blocks), None)]


@pytest.mark.parametrize("page", ALONE, ids=lambda page: page.name)
def test_a_how_to_runs_in_an_empty_folder(page, tmp_path):
    for block in programs(page):
        run_block(block, tmp_path, {**reader_environment(), "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("page", [p for p in RUNNING if p not in ALONE], ids=lambda page: page.name)
def test_a_page_runs_where_its_files_are(page, template, tmp_path, bucket, s3_service):
    folder = tmp_path / "reader"
    shutil.copytree(template, folder, symlinks=True)
    for shim in (folder / ".bin").iterdir():
        shim.write_text(shim.read_text().replace(str(template), str(folder)))
    fill_bucket(folder, bucket)
    if page.name == "library.md":
        prepare_library(folder, bucket)
    if page.name == "training.md":
        prepare_run(folder)
    environment = {**reader_environment(), "OS_SST": str(folder / "os_sst"), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{folder / '.bin'}{os.pathsep}{environment['PATH']}"
    for block in programs(page):
        text = block.text.replace("https://s3.example.org", s3_service.endpoint)
        for example in EXAMPLES:
            text = re.sub(rf"(?<![\w.])(?={example})", str(folder), text)
        run_block(Block(block.page, block.line, block.language, text, None), folder, environment)


def test_the_pages_make_their_pictures():
    make_pictures.main()
    shown = {name for page in make_pictures.PAGES for name in make_pictures.shown_in(page)}
    assert len(shown) >= 30
    assert all((DOCS / name).stat().st_size > 5_000 for name in shown)


def test_the_figure_is_made_in_plain_python(tmp_path):
    make_pictures.main()
    for name in ("ocean_preproc.h5", "ocean_preproc_latents.h5", "map.parquet"):
        (tmp_path / name).symlink_to(make_pictures.TOUR / name)
    environment = reader_environment()
    subprocess.run([sys.executable, DOCS / "paper_figure.py"], cwd=tmp_path, check=True, env=environment)
    assert (tmp_path / "paper_figure.pdf").read_bytes().startswith(b"%PDF")


def test_the_demonstration_runs_as_its_page_says(tmp_path):
    environment = {**reader_environment(), "OMP_NUM_THREADS": "1"}
    code = "import sys; from nenya.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "demo", "model.width=4", "trainer.max_epochs=1"]
    subprocess.run(command, cwd=tmp_path, check=True, env=environment)
    made = {path.name for path in (tmp_path / "outputs" / "demo").iterdir()}
    assert {"gallery.png", "learning_curve.png", "demo_preproc.parquet", "demo_preproc_latents.h5"} <= made
