"""A batch of S3 files against the longer of pure transfer and pure extraction, with a throttled service.

`python benchmarks/s3_batch.py` starts a service with a slow connection in each direction (`tests/s3_server.py`, a
process of its own), and measures, interleaved and in the same process, medians of three:

- transfer: download of one cutout file and upload of its latents through nenya's own store, with all that it verifies.
  The connection is duplex and a batch uses both directions at once, so the longer of the two counts.
- extraction: of one local file, from the moment that it is planned until its latents file is complete.
- batch: of several files from and to the service. Per file, in the steady state: from the end of the first download
  to the end of the last extraction, divided by the number of files; and from the end of the first extraction to the
  end of the last one, divided by one less, which is the stricter measure where the transfer is the longer one.

It prints a table and writes JSON (`outputs/bench/s3_batch.json`).
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
from common import ROOT, machine, write
from memory import generate

from nenya.commands.compose import compose
from nenya.extraction import batch
from nenya.models.checkpoint import save_pth
from nenya.models.contrastive import make_net
from nenya.storage.s3.service import S3Store

SIDE = 64
TINY = ["model=demo", "model.image_size=64", "model.width=4", "model.feat_dim=256", "trainer=cpu"]
REGIMES = {"transfer-bound": 2.0, "extraction-bound": 0.5}  # seconds of a download for each second of extraction


@contextmanager
def service(rate: float) -> Iterator[Any]:
    """Run the throttled service; gives a client that goes around the throttle."""
    command = [sys.executable, str(ROOT / "tests" / "s3_server.py"), "--rate", str(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        found = json.loads(process.stdout.readline())
        keys = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark"}
        try:
            with mock.patch.dict(os.environ, {**keys, "AWS_ENDPOINT_URL": found["endpoint"]}):
                yield boto3.client("s3", endpoint_url=found["service"], region_name="us-east-1")
        finally:
            process.terminate()


class Clock:
    """Notes when downloads end, and when extractions begin and end."""

    def __init__(self) -> None:
        self.downloads: list[float] = []
        self.extractions: list[tuple[float, float]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Note what happens in this block."""
        download, plan, extract = S3Store.download, batch.plan_job, batch.extract_file
        begun: list[float] = []

        def noted_download(*args: Any, **settings: Any) -> str:
            digest = download(*args, **settings)
            self.downloads.append(time.perf_counter())
            return digest

        def noted_plan(*args: Any) -> Any:
            begun.append(time.perf_counter())
            return plan(*args)

        def noted_extract(*args: Any, **settings: Any) -> str | None:
            said = extract(*args, **settings)
            self.extractions.append((begun[-1], time.perf_counter()))
            return said

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(S3Store, "download", noted_download))
            stack.enter_context(mock.patch.object(batch, "plan_job", noted_plan))
            stack.enter_context(mock.patch.object(batch, "extract_file", noted_extract))
            yield


def seconds(work: Any, *args: Any, **settings: Any) -> float:
    start = time.perf_counter()
    work(*args, **settings)
    return time.perf_counter() - start


def run(options: Any, **changes: Any) -> Clock:
    clock = Clock()
    with clock.running():
        if batch.run(dataclasses.replace(options, clobber=True, **changes)):
            raise RuntimeError("a file failed")
    return clock


def rows_per_second(options: Any, data: Path, latents: Path) -> float:
    """Return the speed of extraction here, the first of two runs set aside."""
    generate(data, 256, SIDE)
    for _ in range(2):
        ((start, end),) = run(options, data=str(data), out=str(latents)).extractions
    return 256 / (end - start)


def measure(name: str, wanted: float, files: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Measure one regime, with files for which the longer part takes about `wanted` seconds."""
    data, latents, weights = folder / "cutouts.h5", folder / "cutouts_latents.h5", folder / "weights.pth"
    options = compose("extract", [*TINY, f"ckpt={weights}", f"loader.cache_dir={folder / 'cache'}"])
    save_pth(weights, make_net(options), options={}, epoch=0)
    extraction, download = wanted * min(1, 1 / REGIMES[name]), wanted * min(1, REGIMES[name])
    generate(data, max(64, int(extraction * rows_per_second(options, data, latents))), SIDE)
    run(options, data=str(data), out=str(latents))
    size = data.stat().st_size
    times: dict[str, list[float]] = {key: [] for key in ("download", "upload", "extraction", "batch", "interval")}
    with service(size / download) as client:
        client.create_bucket(Bucket="bench")
        for i in range(files):
            client.put_object(Bucket="bench", Key=f"in/{i}.h5", Body=data.read_bytes())
        for _ in range(repeats):
            store = S3Store()
            store.check_bucket("s3://bench/")  # connects
            times["download"].append(seconds(store.download, "s3://bench/in/0.h5", folder / "copy.h5"))
            times["upload"].append(seconds(store.upload, latents, "s3://bench/copy_latents.h5"))
            ((start, end),) = run(options, data=str(data), out=str(latents)).extractions
            times["extraction"].append(end - start)
            clock = run(options, data="s3://bench/in/*.h5", out="s3://bench/out/")
            ends = [end for _, end in clock.extractions]
            times["batch"].append((ends[-1] - clock.downloads[0]) / files)
            times["interval"].append((ends[-1] - ends[0]) / (files - 1))
    result = {key: statistics.median(values) for key, values in times.items()}
    longer = max(result["download"], result["upload"], result["extraction"])
    ratios = {"ratio": result["batch"] / longer, "interval_ratio": result["interval"] / longer}
    return {"regime": name, "MB": size / 1e6, "files": files, **result, **ratios, "load": os.getloadavg(), "all": times}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="of the longer part of each file")
    parser.add_argument("--files", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    about, results = machine(), []
    keys = ("download", "upload", "extraction", "batch", "ratio", "interval", "interval_ratio")
    for name in REGIMES:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(name, args.seconds, args.files, args.repeats, Path(folder)))
        write("s3_batch", {"results": results}, about)
    print(f"{'seconds per file':18s}" + "".join(f"{key:>15s}" for key in keys))
    for result in results:
        print(f"{result['regime']:18s}" + "".join(f"{result[key]:15.2f}" for key in keys))


if __name__ == "__main__":
    main()
