"""Builds the pages into a folder of versions, beside those of earlier versions, with a page that lists them.

    python docs/make_site.py [folder]     # default outputs/docs/site

The pages are in <folder>/<version>/. Each has a menu of the versions in <folder>/versions.json. A page reads this file
from its server when it is shown, so pages of older versions list newer ones too. Without a server, a link to
<folder>/index.html replaces the menu. All links are relative, so the folder can be put anywhere.
"""

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import make_pictures
import make_report
from pages import DOCS, ROOT, reader_environment

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Versions of nenya</title>
<style>:root {{ color-scheme: light dark; font-family: sans-serif }} body {{ margin: 2rem }}</style>
</head><body><main><h1>Versions of nenya</h1><ul>{items}</ul></main></body></html>
"""


def main() -> None:
    """Build this version, and list all."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "outputs" / "docs" / "site").resolve()
    version = re.search(r'__version__ = "([^"]+)"', (ROOT / "src/nenya/__init__.py").read_text())[1]  # type: ignore[index]
    make_pictures.main()
    make_report.main()
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-d", str(ROOT / "outputs/docs/doctrees-site"), str(DOCS), str(folder / version)]
    subprocess.run(command, check=True, env={**reader_environment(), "NENYA_VERSIONS": "1"})
    list_versions(folder)


def list_versions(folder: Path) -> None:
    """Write the page and the JSON file that list the versions of a folder, the newest first."""
    names = [path.parent.name for path in folder.glob("*/index.html")]
    names.sort(key=lambda name: [int(part) if part.isdigit() else -1 for part in re.split(r"\D+", name)], reverse=True)
    items = "".join(f'<li><a href="{html.escape(name)}/index.html">{html.escape(name)}</a></li>' for name in names)
    (folder / "index.html").write_text(_PAGE.format(items=items))
    listed = [{"version": name, "url": f"{name}/"} for name in names]
    (folder / "versions.json").write_text(json.dumps(listed, indent=1))


if __name__ == "__main__":
    main()
