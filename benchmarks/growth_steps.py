"""One step of growth.py that is no command of nenya, in a process of its own; its last line is JSON.

python growth_steps.py STEP DATA INDEX FILES FOLDER
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from growth_data import name_of

from nenya.latents.files import Latents
from nenya.latents.index import IndexSearcher
from nenya.latents.similarity import closest
from nenya.tables.conditions import rows_where

TINY = ["model=demo", "model.width=1", "model.feat_dim=256", "loader.batch_size_valid=500"]
NENYA = [sys.executable, "-c", "import sys; from nenya.cli import main; sys.exit(main())"]
SELECTIONS = ('range:["DT", 0.4, 1.2]', 'range:["month", 3, 8]', 'range:["lat", -30, 50]', "undo", "reset")
QUERIES, K, BLOCK = 40, 10, 16384
CONDITIONS = ("", "DT > 0.5", "DT > 2", "DT > 2 AND lat > 30 AND lat < 50", "DT > 4", "DT > 7", "DT > 12")


def timed(call):
    """Return the result of a call, its clock and processor milliseconds."""
    clock, processor = time.perf_counter(), time.process_time()
    result = call()
    return result, 1e3 * (time.perf_counter() - clock), 1e3 * (time.process_time() - processor)


def files_of(data, files):
    """Return the latents files."""
    return [data / f"{name_of(number)}_latents.h5" for number in range(files)]


def truth_of(latents, queries, masks):
    """Return of each condition the cosines of the nearest rows of each query, (conditions, Q, K), and the rows."""
    best = np.full((len(masks), len(queries), K), -2, np.float32)
    wanted = queries.T.astype(np.float32)
    for start, block in latents.blocks(BLOCK):
        scores = (block @ wanted).T
        latents.release()
        for own, mask in zip(best, masks, strict=True):
            some = scores[:, mask[start : start + len(block)]] if mask is not None else scores
            both = np.concatenate([own, some], axis=1)
            own[:] = np.partition(both, -K, axis=1)[:, -K:]
    return np.sort(best, axis=2)[:, :, ::-1]


def search(data, index, files, _):
    """Measure recall@10 and time of the index, without conditions and under those of any width."""
    latents = Latents(files_of(data, files))
    rng = np.random.default_rng(7)
    rows = np.sort(rng.choice(len(latents), QUERIES, replace=False))
    queries = latents.take(rows).astype(np.float64)
    table = pq.read_table(data / f"table{files:02d}.parquet", columns=["DT", "lat"]).to_pandas()
    masks = [rows_where(table, sql) if sql else None for sql in CONDITIONS]
    del table
    truth = truth_of(latents, queries, masks)
    found = {}
    for sql, mask, near in zip(CONDITIONS, masks, truth, strict=True):
        searcher = IndexSearcher(index)
        searcher.search(queries[0], K)  # opens the index
        _, first, first_processor = timed(lambda s=searcher, c=sql: s.search(queries[0], K, c or None))
        times, hits, wanted, exact = [], 0, 0, 0
        for query, own in zip(queries, near, strict=True):
            answer, clock, processor = timed(lambda s=searcher, q=query, c=sql: s.search(q, K, c or None))
            times.append((clock, processor))
            own = own[own > -2]
            hits += int((answer.cosine[: len(own)] >= own[-1] - 1e-5).sum()) if len(own) else 0
            wanted, exact = wanted + len(own), exact + answer.exact
        clock, processor = np.median(times, axis=0)
        found[sql or "none"] = {
            "rows": len(latents) if mask is None else int(mask.sum()),
            "first_ms": first,
            "first_processor_ms": first_processor,
            "ms": clock,
            "processor_ms": processor,
            "recall": hits / max(1, wanted),
            "exact": exact / QUERIES,
        }
    return {"conditions": found, "processor_ms": found["none"]["processor_ms"], "ms": found["none"]["ms"]}


def exact(data, _, files, __):
    """Measure exact search in files against reading them with dd and copying memory."""
    paths = files_of(data, files)
    latents = Latents(paths)
    query = latents.take([11])[0].astype(np.float64)
    gigabytes = len(latents) * latents.shape[1] * 4 / 1e9
    closest(latents[0:1000], query, K)
    _, clock, processor = timed(lambda: closest(latents, query, K))
    _, again, _ = timed(lambda: closest(latents, query, K))
    start = time.perf_counter()
    for path in paths:
        subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=4M"], check=True, capture_output=True)
    dd = time.perf_counter() - start
    block = np.ones(2**27, np.float32)
    target = np.empty_like(block)
    np.copyto(target, block)
    _, copy, _ = timed(lambda: np.copyto(target, block))
    return {
        "ms": min(clock, again),
        "processor_ms": processor,
        "GB_per_s": 1e3 * gigabytes / min(clock, again),
        "dd_GB_per_s": gigabytes / dd,
        "memory_copy_GB_per_s": 1e3 * block.nbytes / 1e9 / copy,
    }


def small_files(folder, rows=10_000):
    """Write two files of small generated cutouts with their tables, and weights of a tiny network; return the paths."""
    from memory import generate

    from nenya.commands.compose import compose
    from nenya.models.checkpoint import save_pth
    from nenya.models.contrastive import make_net

    paths = []
    for name in ("first", "later"):
        path = folder / f"{name}.h5"
        generate(path, rows, 16, seed=len(paths))
        table = pq.read_table(folder / "data" / "tables" / f"{name_of(0)}.parquet").slice(0, rows)
        wanted = [column for column in table.column_names if column not in ("pp_file", "US0", "US1")]
        frame = table.select(wanted).to_pandas().assign(pp_file=path.name, pp_type=1, pp_idx=np.arange(rows))
        frame.to_parquet(path.with_suffix(".parquet"))
        paths.append(path)
    weights = folder / "tiny.pth"
    save_pth(weights, make_net(compose("extract", TINY)), options={}, epoch=0)
    return *paths, weights


def enlarge(archive, index, data, files):
    """Give an archive of one small file an index of many rows and the entries of files of 10,000 rows.

    The index is that of the `index` step, with the file's rows added; the entries name small files that exist.
    """
    from dataclasses import replace

    from nenya.archive.folder import Folder
    from nenya.archive.manifest import Index
    from nenya.io import read_table
    from nenya.latents.index import open_table
    from nenya.latents.index_build import add_files, build_index, recall_line, write_about

    folder = Folder(str(archive), None)
    manifest = folder.read()
    (name, version), own = next(iter(manifest.items())), archive / next(iter(manifest)) / "index"
    shutil.rmtree(own)
    shutil.copytree(index, own, copy_function=os.link)
    (own / "nenya.json").unlink()
    shutil.copy(index / "nenya.json", own / "nenya.json")
    first = version.files[0]
    latents = Latents([folder.root / first.latents.name])
    about = json.loads((own / "nenya.json").read_text())
    write_about(own, {**about, "provenance": latents.provenance})
    add_files(own, latents, read_table(folder.root / first.table.name))
    build_index(own)
    about, table = json.loads((own / "nenya.json").read_text()), open_table(own)
    work = folder.work
    work.mkdir(parents=True, exist_ok=True)
    said = work / f"about-{table.version}.json"
    said.write_text(json.dumps({"about": about, "files": []}) + "\n")
    entry = folder.publish(said, f"{name}/index-states/{said.name}", keep=True)
    version.index = Index(int(table.version), int(table.count_rows()), entry, recall_line(about))
    for number in range(files * 10**6 // 10_000):
        version.files.append(replace(first, stem=f"old{number:05d}", sources=[[f"/old{number:05d}.h5", 1, "0"]]))
    folder.commit(manifest)


def prepare_update(data, index, files, folder):
    """Make the archive to which a file of 10,000 rows is to be added."""
    first, _, weights = small_files(folder)
    archive = folder / f"archive{files:02d}"
    shutil.rmtree(archive, ignore_errors=True)
    call = [*NENYA, "update", *TINY, "trainer=cpu", f"new={first}", f"archive={archive}", f"ckpt={weights}"]
    subprocess.run([*call, "ntrain=2000"], check=True)
    enlarge(archive, index, data, files)
    return {}


def portal(data, _, files, folder):
    """Start the portal and look at it as a browser does, with the latents, and by the table alone.

    With latents, an action ends when the look-alikes of the cutout are found again, by a pass over all latents.
    """
    latents = ",".join(map(str, files_of(data, files)))
    return {**looked_at(data, files, folder, [f"latents=[{latents}]"]), "table": looked_at(data, files, folder, [])}


def looked_at(data, files, folder, more):
    """Return seconds of start, first view, selections and neighbours, and the memory, of a portal with some options."""
    import psutil
    from portal import Client

    async def look(port):
        client = await Client.open(port)
        selections = [await client.act(action) for action in SELECTIONS]
        rows = (5, 700_000) if more else ()  # by a table alone no look-alikes are found
        return client.first_view, selections, [await client.act(f"row:{row}") for row in rows]

    start, log = time.perf_counter(), folder / f"server{files:02d}.log"
    command = [*NENYA, "portal", f"table={data / f'table{files:02d}.parquet'}", *more, "port=0"]
    with log.open("w") as said:
        server = subprocess.Popen(command, stderr=said)
    process = psutil.Process(server.pid)
    try:
        while not (found := re.search(r"127\.0\.0\.1:(\d+)", log.read_text())):
            if server.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.05)
        started, before = time.perf_counter() - start, sum(process.cpu_times()[:2])
        view, selections, neighbours = asyncio.run(look(int(found[1])))
        after, memory = sum(process.cpu_times()[:2]), process.memory_info()
    finally:
        server.terminate()
        server.wait(20)
    return {
        "start_s": started,
        "start_processor_s": before,
        "first_view_s": view,
        "selection_s": float(np.median(selections)),
        "largest_selection_s": max(selections),
        **({"neighbours_s": float(np.median(neighbours))} if more else {}),
        "looking_processor_s": after - before,
        "server_own_GB": (memory.rss - memory.shared) / 1e9,
        "server_resident_GB": memory.rss / 1e9,
    }


STEPS = {"search": search, "exact": exact, "prepare_update": prepare_update, "portal": portal}

if __name__ == "__main__":
    step, data, index, files, folder = sys.argv[1:]
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    print(json.dumps(STEPS[step](Path(data), Path(index), int(files), Path(folder))))
