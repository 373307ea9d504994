"""The pages and the README: blocks run or say why not, commands have options that exist, links lead somewhere."""

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.append(str(DOCS))

import make_pictures  # noqa: E402  # docs/make_pictures.py
from pages import RUN, Block, blocks_of, plurals_of_one, reader_environment, run_block  # noqa: E402  # docs/pages.py

from nenya.commands.compose import GROUPS, command_names, options_of, prepare  # noqa: E402
from nenya.errors import NenyaError  # noqa: E402
from nenya.options.files import config_dir, model_versions  # noqa: E402
from nenya.options.sections import Options, build_options  # noqa: E402

PAGES = sorted([*DOCS.rglob("*.md"), *(p for p in ROOT.glob("*.md") if p.name != "CHANGELOG.md")])
PAGES.append(ROOT / "benchmarks" / "README.md")
SCRIPTS = {
    path.name: re.search(r'run_command\("(\w+)"\)', path.read_text())[1] for path in (ROOT / "scripts").glob("*.py")
}
SHOWN_ONLY = ("yaml", "json", "docker", "text")
VARIABLES = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4"}
NOTEBOOK = DOCS / "paper_figure.ipynb"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose_of(page: Path) -> str:
    """The text of a page without its blocks."""
    return re.sub(r"^(`{3,})[^\n]*\n.*?^\1$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def spans_of(page: Path) -> list[str]:
    """What stands between single backticks, lines joined."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose_of(page))]


def words_of(text: str) -> list[list[str]]:
    """The words of each command in a shell text: simple lines, pipes and lists of commands."""
    text = re.sub(r"<< *'?(\w+)'?\n.*?^\1$", "", text.replace("\\\n", " "), flags=re.MULTILINE | re.DOTALL)
    found = []
    for line in text.splitlines():
        line = re.sub(r"\$\{(\w+):-([^}]*)\}", r"\2", line)
        line = re.sub(r"\$(\w+)", lambda m: VARIABLES.get(m[1], m[0]), line)
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&<>")
            lexer.whitespace_split = True
            words = list(lexer)
        except ValueError:  # a part of a longer construct
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if re.fullmatch(r"[;|&<>]+", word):
                found.append(command)
                command = []
            else:
                command.append(word)
    return [command for command in found if command]


def nenya_call(words: list[str]) -> tuple[str, tuple[str, ...]] | None:
    """(command, arguments) where the words call nenya, by its name or by a script."""
    for i, word in enumerate(words):
        if word == "nenya" and i + 1 < len(words) and words[i + 1] in command_names():
            return words[i + 1], tuple(words[i + 2 :])
        if word.startswith("scripts/") and i and words[i - 1] == "python":
            assert Path(word).name in SCRIPTS, f"{word} is not there"
            return SCRIPTS[Path(word).name], tuple(words[i + 1 :])
    return None


def calls_of(page: Path) -> dict[tuple[str, tuple[str, ...]], str]:
    """The calls of nenya in the blocks and the prose of a page -> where each is."""
    texts = [(str(block), block.text) for block in blocks_of(page) if block.language == "sh"]
    texts += [(name_of(page), span) for span in spans_of(page) if re.match(r"(nenya|python scripts/\S+\.py) ", span)]
    if page.name == "cluster.md":
        texts += [(name_of(path), path.read_text()) for path in sorted((DOCS / "cluster").glob("*.sh"))]
    return {call: where for where, text in texts for words in words_of(text) if (call := nenya_call(words))}


def check_options(name: str, args: tuple[str, ...], folder: Path) -> None:
    """Check the options of a call as the command itself does, without doing its work."""
    left: list[str] = []
    for arg in args:
        key, _, value = arg.partition("=")
        if key == "hydra/launcher":
            assert (config_dir() / "hydra" / "launcher" / f"{value}.yaml").is_file(), arg
        elif (
            key == "resume"
            or arg in ("...", "--multirun", "--help", "--list", "--cfg", "job")
            or key.startswith("hydra.")
        ):
            continue
        elif value in ("...", "NAME", "") and "=" in arg:
            assert key in {f.name for f in fields(options_of(name))} or key in ("model", "sensor", "trainer"), arg
        elif key in ("model", "sensor") and Path(value).suffix in (".json", ".yaml"):
            stub = folder / f"stub{Path(value).suffix}"
            stub.write_text("{}")
            left.append(f"{key}={stub}")
        elif arg == "--export":
            left.append("export=page")
        else:
            left.append(arg)
    values: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(prepare(name, left)):
        if override.key_or_group not in GROUPS:
            *section, key = override.key_or_group.split(".")
            (values.setdefault(section[0], {}) if section else values)[key] = override.value()
    build_options(options_of(name), values)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_block_is_run_or_says_why_not(page):
    for block in blocks_of(page):
        if block.language.startswith("{"):
            continue
        assert block.language in (*RUN, *SHOWN_ONLY), f"{block}: say the language behind the fence"
        assert block.language in (*RUN, "yaml", "json", "text") or block.reason, f"{block}: <!-- not run: why -->"
        assert block.reason is None or len(block.reason.split()) > 1, f"{block}: no reason"
    code = re.findall(r"^(?: {4}|\t)(?:nenya|python|make|pip|sbatch|kubectl) .*", prose_of(page), re.MULTILINE)
    assert not code, f"{page}: a command in an indented block is not run: {code}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_block_parses(page):
    for block in blocks_of(page):
        if block.language == "sh":
            done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{block}: {done.stderr}"
        elif block.language == "python":
            ast.parse(block.text, str(block))
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            assert list(yaml.safe_load_all(block.text)), block


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_options_of_each_call_are_possible(page, tmp_path):
    wrong = []
    for (name, args), where in calls_of(page).items():
        try:
            check_options(name, args, tmp_path)
        except NenyaError as error:
            wrong.append(f"{where}: nenya {name} {' '.join(args)}: {error}")
    assert not wrong, "\n".join(wrong)


def test_calls_are_found_and_wrong_options_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Or `nenya verify\na.h5`.\n\n```sh\nA=1 nenya extract model=v5 \\\n    data='a b.h5' | head  # x\n```\n"
    )
    page_calls = {call for block in blocks_of(page) for words in words_of(block.text) if (call := nenya_call(words))}
    assert page_calls == {("extract", ("model=v5", "data=a b.h5"))}
    assert spans_of(page) == ["nenya verify a.h5"]
    assert sum(len(calls_of(p)) for p in PAGES) > 80
    for args in (("model=v55",), ("loader.batch_size_vald=3",), ("trainer.max_epochs=many",), ("hydra/launcher=slum",)):
        with pytest.raises((NenyaError, AssertionError)):
            check_options("extract", args, tmp_path)


def test_blocks_know_their_reasons(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n<!-- not run: needs SLURM -->\n```sh\nsbatch x\n```\n\n```python\n1\n```\n\n"
        "````text\n```sh\n```\n````\n"
    )
    assert [(b.line, b.language, b.reason, b.runs) for b in blocks_of(page)] == [
        (4, "sh", "needs SLURM", False), (8, "python", None, True), (12, "text", None, False),
    ]  # fmt: skip


def sections() -> dict[str, set[str]]:
    return {f.name: {inner.name for inner in fields(f.type)} for f in fields(Options) if is_dataclass(f.type)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_in_the_prose_exist(page):
    """`section.key` is an option, and `nenya.module.name` a name of the library."""
    known = sections()
    for span in spans_of(page):
        for word in span.split():
            section, dot, key = word.partition("=")[0].partition(".")
            if dot and section in known and re.fullmatch(r"[a-z_]+", key) and key not in ("py", "json", "safetensors"):
                assert key in known[section], f"{name_of(page)}: {span}"
        name = re.fullmatch(r"(nenya(?:\.[A-Za-z_]\w*)+)(?:\(.*)?", span)
        if name and not name[1].endswith((".json", ".yaml")):
            assert _resolves(name[1]), f"{name_of(page)}: {span}"


def _resolves(dotted: str) -> bool:
    parts = dotted.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[i:]:
                found = getattr(found, part)
        except AttributeError:
            return False
        return True
    return False


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_relative_links_lead_somewhere(page):
    pages = [*make_pictures.PAGES, DOCS / "report.md"]
    made = {name for other in pages for name in make_pictures.shown_in(other)}  # test_docs_run.py and test_report.py
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        path = target.partition("#")[0]
        if not path or re.match(r"[a-z0-9]+:", path):
            continue
        assert (page.parent / path).exists() or path in made, f"{name_of(page)}: {target}"


@pytest.mark.parametrize("path", sorted((DOCS / "cluster").iterdir()), ids=lambda path: path.name)
def test_cluster_files_parse_and_their_options_are_possible(path, tmp_path):
    if path.suffix == ".sh":
        subprocess.run(["bash", "-n", path], check=True)
        return
    (job,) = yaml.safe_load_all(path.read_text())
    pod = job["spec"]["template"]["spec"]["containers"][0]
    assert job["kind"] == "Job" and job["spec"]["completionMode"] == "Indexed"
    program, command = pod["command"]
    assert program == "nenya"
    check_options(command, tuple(pod["args"]), tmp_path)
    named = {entry["name"]: entry.get("value") for entry in pod["env"]}
    assert named["JOB_COMPLETIONS"] == str(job["spec"]["completions"])


def test_a_page_names_all_model_versions():
    versions = (DOCS / "howto" / "model_versions.md").read_text()
    assert [name for name in model_versions() if f"`{name}`" not in versions] == []


def code_of(cells) -> str:
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_the_notebook_is_its_script_executed():
    notebook = json.loads(NOTEBOOK.read_text())
    script = (DOCS / "paper_figure.py").read_text()
    code = code_of(notebook["cells"])
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(script))
    prose = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    assert "\n".join(prose).split() == " ".join(
        line.removeprefix("#") for line in script.splitlines() if line.startswith("#") and not line.startswith("# %%")
    ).split()  # fmt: skip
    lines = [line for line in code.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) == 22  # as its prose says
    assert NOTEBOOK.stat().st_size < 500_000
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(output["output_type"] != "error" for output in outputs)
    assert all(cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert str(ROOT) not in NOTEBOOK.read_text() and "/home/" not in NOTEBOOK.read_text()


def test_a_plural_after_the_number_one_is_seen():
    assert plurals_of_one("unpacks 1 chunks, 0.07 MB; t: 1 epochs") == ["1 chunks", "1 epochs"]
    assert plurals_of_one("1 chunk, 21 rows, 0.1 days, 0/1 files, 1 is, [1 rows x 5 columns]") == []
    block = Block(Path("page.md"), 1, "sh", "echo 1 files", None)
    with pytest.raises(RuntimeError, match=r"page.md:1 printed 1 files"):
        run_block(block, Path.cwd(), reader_environment())


def test_a_block_is_plain_data():
    assert Block(DOCS / "a.md", 3, "sh", "", None).runs
    assert not Block(DOCS / "a.md", 3, "{toctree}", "", None).runs


def test_a_screen_is_a_picture_that_loads_nothing(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- screen: verify.svg -->\n```sh\necho 'all <files> are good'\n```\n")
    (block,) = blocks_of(page)
    make_pictures.screen(block, run_block(block, tmp_path, reader_environment()), tmp_path / block.screen)
    drawn = (tmp_path / "verify.svg").read_text()
    assert "&lt;files&gt;" in drawn and "all" in drawn and "@font-face" not in drawn
    assert set(re.findall(r"https?://[^\"'<> )]+", drawn)) <= {
        "http://www.w3.org/2000/svg",
        "https://www.textualize.io",
    }


WAYS = {
    "netcdf": "I have NetCDF",
    "cutouts": "I have cutouts",
    "migrate": "I have the first nenya's files and scripts",
    "cluster": "I have a cluster",
    "plotting": "I want a figure for a paper",
    "compare": "I want to compare a model with a satellite",
    "review": "I review this software",
}


@pytest.mark.parametrize("name", WAYS)
def test_each_way_in_begins_with_a_command_and_its_picture(name):
    text = (DOCS / f"{name}.md").read_text()
    assert text.startswith(f"# {WAYS[name]}\n")
    assert f"[{WAYS[name]}]({name}.md)" in (DOCS / "index.md").read_text()
    prose = re.sub(r"<!--.*?-->\n", "", text, flags=re.DOTALL)
    assert re.match(r"# [^\n]+\n+```sh\n(nenya|make|for) .*?```\n+!\[[^\]]+\]\(", prose, re.DOTALL), name


def torn_rows(text: str) -> list[str]:
    """The rows of tables that are under no head, or have more or fewer cells than it."""
    lines, torn, width = text.splitlines(), [], 0
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(re.split(r"(?<!\\)\|", line.strip()))
        if not width and "-" in after and set(after) <= set("|-: "):
            width = cells
        if cells != width:
            torn.append(line)
    return torn


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_are_whole(page):
    assert not torn_rows(prose_of(page))


def test_a_torn_table_is_seen():
    head = "| way | cells |\n| --- | --- |\n"
    assert not torn_rows(f"{head}| a `b \\| c` | 1 |\n\ntext\n\n{head}| d | 2 |")
    assert torn_rows(f"{head}| a | 1 |\n\n| b | 2 |") == ["| b | 2 |"]
    assert torn_rows(f"{head}| a | 1 | 2 |\n| b |") == ["| a | 1 | 2 |", "| b |"]


def test_pages_are_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    long = [name_of(page) for page in DOCS.rglob("*.md") if len(page.read_text().splitlines()) > 300]
    assert long == []
