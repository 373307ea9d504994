"""How the cost of each command grows with the rows: 2, 5, 10 and 20 million latents of 256 dimensions.

    python benchmarks/growth.py [--million 2 5 10 20] [--only index search ...] [--folder outputs/growth]

Each command runs in a process of its own. Kept of each, in outputs/bench/growth.json, as soon as it ends: processor and
clock seconds, the load of the machine, the largest anonymous memory (its own) and all resident memory (with mapped
pages). Existing results are not measured again, so that a killed run resumes; `--again` measures them again. 20 million
rows need 45 GB: 20 of latents, 21 of the index, 2 of tables.

`python benchmarks/growth.py --figure docs/images/growth.svg` draws the kept results, with the exponents.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from common import RESULTS, machine
from growth_data import FILE_ROWS, make, name_of

ROOT = Path(__file__).resolve().parents[1]
CALL = "import sys; from nenya.cli import main; sys.exit(main())"
HELPER = Path(__file__).with_name("growth_steps.py")
STEPS = ("statistics", "index", "search", "exact", "clusters", "metrics", "outliers", "update", "portal")


def memory(pid):
    """Return the bytes that a process and its children hold: anonymous, all."""
    own = [0, 0]
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *children):
            text = Path(f"/proc/{one}/status").read_text()
            said = {
                line.split(":")[0]: line.split()[1]
                for line in text.splitlines()
                if "RssAnon" in line or "VmRSS" in line
            }
            own = [own[0] + 1024 * int(said.get("RssAnon", 0)), own[1] + 1024 * int(said.get("VmRSS", 0))]
    except OSError:
        pass
    return tuple(own)


def measure(command, log):
    """Run a process; return its seconds, memory, and the last line of its output if that is JSON."""
    start, peaks, load = time.perf_counter(), (0, 0), os.getloadavg()[0]
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            peaks = tuple(map(max, peaks, memory(process.pid)))
            time.sleep(0.05)
    status, usage = os.waitstatus_to_exitcode(ended[1]), ended[2]
    text = log.read_text()
    if status:
        raise RuntimeError(f"{' '.join(map(str, command[-6:]))}: exit code {status}\n{text[-3000:]}")
    found = {
        "processor_s": usage.ru_utime + usage.ru_stime,
        "clock_s": time.perf_counter() - start,
        "own_GB": peaks[0] / 1e9,
        "resident_GB": peaks[1] / 1e9,
        "load": [load, os.getloadavg()[0]],
    }
    lines = [line for line in text.splitlines() if line.startswith("{")]
    return {**found, **(json.loads(lines[-1]) if lines else {})}


def command_of(step, folder, data, million):
    """Return the command line of a step."""
    files = million * 10**6 // FILE_ROWS
    latents = ",".join(str(data / f"{name_of(number)}_latents.h5") for number in range(files))
    table, index = data / f"table{files:02d}.parquet", folder / f"index{million:02d}"
    nenya = [sys.executable, "-c", CALL]
    both = [f"data=[{latents}]", f"table={table}"]
    if step == "statistics":
        return [*nenya, "statistics", f"table={table}", "where=DT > 2", f"out={folder}/statistics.csv", "clobber=true"]
    if step == "index":
        return [*nenya, "index", *both, f"out={index}"]
    if step == "clusters":
        return [*nenya, "clusters", *both, "k=20", f"out={folder}/clusters.parquet", "clobber=true"]
    if step == "metrics":
        out = f"out={folder}/metrics{million:02d}"
        return [*nenya, "metrics", *both, out, "coefficients=false", "clobber=true"]
    if step == "outliers":
        return [
            *nenya,
            "outliers",
            *both,
            f"out={folder}/outliers.parquet",
            "clobber=true",
            f"loader.cache_dir={folder}",
        ]
    if step == "update":
        return [*nenya, "update", f"new={folder}/later.h5", f"archive={folder}/archive{files:02d}", "trainer=cpu"]
    return helper(step, data, index, files, folder)


def helper(step, data, index, files, folder):
    """Return the command line of a step of growth_steps.py."""
    return [sys.executable, str(HELPER), step, str(data), str(index), str(files), str(folder)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--million", type=int, nargs="+", default=[2, 5, 10, 20])
    parser.add_argument("--only", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "growth")
    parser.add_argument("--again", action="store_true", help="measure existing results again")
    parser.add_argument("--drop", action="store_true", help="remove an index that all of --only have used")
    parser.add_argument("--figure", type=Path, help="only draw the results")
    arguments = parser.parse_args()
    if arguments.figure:
        draw(arguments.figure)
        return
    kept = RESULTS / "growth.json"
    results = json.loads(kept.read_text()) if kept.is_file() else {"machine": machine(), "steps": {}}
    data = arguments.folder / "data"
    for million in arguments.million:
        make(data, million * 10**6 // FILE_ROWS)
        for step in arguments.only:
            own = results["steps"].setdefault(step, {})
            if str(million) in own and not arguments.again:
                continue
            if step == "update":
                index = arguments.folder / f"index{million:02d}"
                files = million * 10**6 // FILE_ROWS
                subprocess.run(helper("prepare_update", data, index, files, arguments.folder), check=True, cwd=ROOT)
            command = command_of(step, arguments.folder, data, million)
            found = measure(command, arguments.folder / f"{step}{million:02d}.log")
            kept.parent.mkdir(parents=True, exist_ok=True)
            if kept.is_file():  # another run may have added to it
                results = json.loads(kept.read_text())
            results["steps"].setdefault(step, {})[str(million)] = found
            kept.write_text(json.dumps(results, indent=1) + "\n")
            figures = ", ".join(
                f"{key} {found[key]:.2f}" for key in ("processor_s", "clock_s", "own_GB", "resident_GB")
            )
            print(f"{million:3d} million, {step}: {figures}, load {found['load'][0]:.1f}", flush=True)
        if arguments.drop:
            shutil.rmtree(arguments.folder / f"index{million:02d}", ignore_errors=True)


def exponent(rows, values):
    """Return the slope of a straight line through the logarithms."""
    return float(np.polyfit(np.log(rows), np.log(values), 1)[0]) if len(rows) > 1 else float("nan")


CURVES = {  # name in the figure -> step, figure
    "index": ("index", "processor_s"),
    "statistics": ("statistics", "processor_s"),
    "clusters": ("clusters", "processor_s"),
    "metrics": ("metrics", "processor_s"),
    "outliers": ("outliers", "processor_s"),
    "exact search": ("exact", "processor_ms"),
    "search in the index": ("search", "processor_ms"),
    "update by 10,000 rows": ("update", "processor_s"),
    "portal: start": ("portal", "start_processor_s"),
}


def curves(results):
    """Return name -> rows in millions, processor seconds, exponent."""
    found = {}
    for name, (step, key) in CURVES.items():
        own = results["steps"].get(step, {})
        rows = sorted(int(million) for million, figures in own.items() if key in figures)
        values = [own[str(million)][key] / (1000 if key.endswith("_ms") else 1) for million in rows]
        if rows:
            found[name] = rows, values, exponent(rows, values)
    return found


def draw(path):
    """Draw processor seconds against rows on logarithmic axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "growth"
    import matplotlib.pyplot as plt

    kept = RESULTS / "growth.json"
    results = json.loads((kept if kept.is_file() else ROOT / "benchmarks" / "results" / "growth.json").read_text())
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for number, (name, (rows, values, slope)) in enumerate(curves(results).items()):
        label = name if np.isnan(slope) else f"{name}: N^{slope:.2f}"
        axes.loglog(rows, values, marker="o", color=f"C{number}", label=label)
        print(f"{name}: {', '.join(f'{r} million {v:.3g} s' for r, v in zip(rows, values, strict=True))}; {slope:.2f}")
    axes.set(xlabel="latents of 256 dimensions, millions", ylabel="processor seconds")
    axes.set_xticks([2, 5, 10, 20], labels=["2", "5", "10", "20"])
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
