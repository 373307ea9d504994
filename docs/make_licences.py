"""Write `docs/licences.md`: the licence of each package that nenya brings, from the metadata of those installed."""

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).with_name("licences.md")
PROJECT = PAGE.parents[1] / "pyproject.toml"
EXTRAS = ("search", "portal", "publish", "onnx", "slurm", "dask")
_LONG = 60  # characters; a longer field is the text of a licence, not its name


def closure(wanted: list[str]) -> dict[str, Distribution]:
    """Return the packages of some requirements, with all that these bring, by their names."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    waiting = [(Requirement(text), ("",)) for text in wanted]
    while waiting:
        asked, extras = waiting.pop()
        key = (normal(asked.name), tuple(sorted(asked.extras)))
        if key in seen or (asked.marker and not any(asked.marker.evaluate({"extra": extra}) for extra in extras)):
            continue
        seen.add(key)
        try:
            package = distribution(asked.name)
        except PackageNotFoundError as error:
            raise SystemExit(f"{asked.name} is not installed: make install first") from error
        found[key[0]] = package
        waiting += [(Requirement(text), ("", *asked.extras)) for text in package.requires or []]
    return found


def normal(name: str) -> str:
    """Return a package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(package: Distribution) -> str:
    """Return the name of a package's licence, by the first of its fields that says one; 'unknown' if none does."""
    fields = package.metadata
    if fields["License-Expression"]:
        return str(fields["License-Expression"])
    named = [
        c.rpartition(" :: ")[2]
        for c in fields.get_all("Classifier") or []
        if c.startswith("License :: OSI Approved :: ")
    ]
    if named:
        return " and ".join(dict.fromkeys(named))
    first = (fields["License"] or "").strip().splitlines()
    return first[0].strip() if first and len(first[0]) <= _LONG else "unknown"


def page() -> str:
    """Return the page."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    packages = closure(project["dependencies"])
    rows = dict.fromkeys(packages, "core")
    for extra in EXTRAS:
        more = closure(project["optional-dependencies"][extra])
        rows.update({name: f"`{extra}`" for name in more if name not in rows})
        packages.update(more)
    lines = [
        "# Licences of the packages that nenya brings",
        "",
        "Nenya itself is under BSD-3-Clause; the coastlines are Natural Earth's, in the public domain, "
        "the colour maps cmocean's, under MIT. `pip install nenya`",
        "brings the packages marked core; an extra brings those of its name too. Written by `make licences` from the "
        "metadata",
        "of the packages of `constraints.txt`.",
        "",
        "| package | version | licence | part |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {packages[name].version} | {licence_of(packages[name]).replace('|', '/')} | {part} |"
            for name, part in sorted(rows.items())
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
