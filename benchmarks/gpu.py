"""All measurements of a GPU in one command of under ten minutes.

    python benchmarks/gpu.py [--minutes 9]

In this order, each with its share of the time, the result written after each: the peak of bfloat16 matrix products and
the bandwidth of the memory; the forward pass of ResNet50 by precision, memory format, backend and batch; how near the
latents in bfloat16 are to those in float32; a complete extraction and a complete epoch of training from a
gzip-compressed file with automatic chunks, against the rate with data that are on the device already; and profiles of
both. Tables go to `benchmarks/results/gpu-<name>.json` and `.md`. With `--device cpu --quick` the same steps run small
on a CPU, so that they are known to run.
"""

import argparse
import contextlib
import csv
import io
import json
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from common import ROOT, machine, make_cutouts
from torch.profiler import ProfilerActivity, profile

from nenya.cli import run_command
from nenya.commands.compose import compose
from nenya.data.augment import ViewSampler
from nenya.models.checkpoint import save_pth
from nenya.models.contrastive import make_net
from nenya.models.inference import make_runner
from nenya.models.losses import contrastive_loss

FORWARD_GFLOP, STEP_GFLOP = 10.4, 62.0  # ResNet50 on a 64 x 64 cutout; a training step with its two views
SIDE = 64


class Bench:
    """The device, the sizes, and what was found."""

    def __init__(self, device: str, *, quick: bool, minutes: float) -> None:
        self.device, self.quick, self.until = torch.device(device), quick, time.monotonic() + 60 * minutes
        self.overrides = ["model=custom", "model.nchannels=1"] + (
            ["model.ssl_model=resnet18", "model.width=16", "model.feat_dim=32"] if quick else []
        )
        self.options = compose("extract", self.overrides)
        self.net = make_net(self.options).eval().to(self.device)
        self.results: dict[str, Any] = {"machine": machine()}
        self.rows = 512 if quick else 100_000

    @property
    def left(self) -> float:
        """Seconds until it must end."""
        return self.until - time.monotonic()

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rate(self, call: Callable[[], Any], units: float, seconds: float = 2.0) -> float:
        """Return units a second of a call, after two calls that are ignored."""
        for _ in range(2):
            call()
        self.wait()
        start, calls = time.perf_counter(), 0
        while calls < 2 or (time.perf_counter() - start < (0.1 if self.quick else seconds)):
            call()
            calls += 1
            if calls % 8 == 0:
                self.wait()
        self.wait()
        return units * calls / (time.perf_counter() - start)

    def share(self, rate: float, gflop: float) -> float:
        """Return a rate's share of the peak of bfloat16 matrix products."""
        return rate * gflop / 1e3 / self.results["peak"]["bf16_matmul_TFLOPs"]

    def autocast(self, precision: str) -> Any:
        """Return the context of a precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")


def peak(bench: Bench) -> dict[str, float]:
    """Matrix products of 8192 x 8192 in bfloat16, and a copy within the device's memory."""
    size = 256 if bench.quick else 8192
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    tflops = bench.rate(lambda: a @ b, 2 * size**3 / 1e12)
    big = torch.empty(2**20 if bench.quick else 2**30, dtype=torch.uint8, device=bench.device)
    return {"bf16_matmul_TFLOPs": tflops, "copy_GB_per_s": bench.rate(big.clone, 2 * big.nbytes / 1e9)}


def forward(bench: Bench) -> dict[str, Any]:
    """Cutouts a second by precision, backend and batch, and the share of the peak."""
    found = {}
    for batch in (16,) if bench.quick else (256, 1024, 2048):
        images = torch.randn(batch, 1, SIDE, SIDE, device=bench.device)
        for precision in ("fp32", "bf16"):
            for backend in ("eager", "folded", "compiled"):
                if bench.left < 240 and not bench.quick and backend == "compiled":
                    continue
                runner = make_runner(bench.net, "projection", backend, tuple(images.shape))
                with torch.inference_mode(), bench.autocast(precision):
                    rate = bench.rate(lambda: runner(images), batch)  # noqa: B023  # called at once
                key = f"{precision}, {backend}, batch {batch}"
                found[key] = {"cutouts_per_s": rate, "share_of_peak": bench.share(rate, FORWARD_GFLOP)}
    found["fp32, CUDA graph, batch 256"] = graphed(bench, "fp32")
    found["bf16, CUDA graph, batch 256"] = graphed(bench, "bf16")
    return found


def graphed(bench: Bench, precision: str) -> dict[str, float] | None:
    """The folded network captured as a CUDA graph."""
    if bench.device.type != "cuda":
        return None
    images = torch.randn(256, 1, SIDE, SIDE, device=bench.device)
    runner = make_runner(bench.net, "projection", "folded", tuple(images.shape))
    with torch.inference_mode(), bench.autocast(precision):
        for _ in range(3):
            runner(images)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            runner(images)
        rate = bench.rate(graph.replay, len(images))
    return {"cutouts_per_s": rate, "share_of_peak": bench.share(rate, FORWARD_GFLOP)}


def agreement(bench: Bench) -> dict[str, float]:
    """The least cosine between latents in bfloat16 and in float32, of generated cutouts."""
    images = torch.from_numpy(make_cutouts(64 if bench.quick else 2048)).to(bench.device)
    with torch.inference_mode():
        exact = bench.net(images).double()
        with bench.autocast("bf16"):
            rough = bench.net(images).double()
    cosine = torch.nn.functional.cosine_similarity(exact, rough)
    return {"least_cosine": float(cosine.min()), "mean_cosine": float(cosine.mean()), "wanted": 0.9995}


def training_step(bench: Bench) -> dict[str, Any]:
    """Samples a second of a step from data on the device: views, forward, backward, update."""
    found = {}
    options = compose("train", bench.overrides)
    batch = 8 if bench.quick else 256
    images = torch.randn(batch, 1, SIDE, SIDE, device=bench.device)
    generator, sampler = torch.Generator().manual_seed(0), ViewSampler()
    for precision in ("fp32", "bf16") if bench.device.type == "cuda" else ("fp32",):  # no CPU has to learn in bf16
        for layout in (torch.contiguous_format, torch.channels_last):
            for compiled in (False, True):
                if compiled and (bench.quick or bench.left < 200):
                    continue
                net = make_net(options).train().to(bench.device, memory_format=layout)
                fused = True if bench.device.type == "cuda" else None
                optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, fused=fused)
                network = torch.compile(net.forward, dynamic=False) if compiled else net

                def step(network=network, optimizer=optimizer, precision=precision):
                    views = sampler.two_views(images, generator).flatten(0, 1)
                    with bench.autocast(precision):
                        features = network(views)
                        loss = contrastive_loss(features.float().unflatten(0, (batch, 2)))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()

                rate = bench.rate(step, batch, 3.0)
                name = f"{precision}, {'channels last' if layout is torch.channels_last else 'contiguous'}"
                key = name + (", compiled" if compiled else "")
                found[key] = {"samples_per_s": rate, "share_of_peak": bench.share(rate, STEP_GFLOP)}
    return found


def quietly(command: str, args: list[str]) -> str:
    """Run a command in this process; return what it said."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        if run_command(command, args):
            raise RuntimeError(said.getvalue())
    return said.getvalue()


def whole_runs(bench: Bench, folder: Path) -> dict[str, Any]:
    """A complete extraction and one epoch of training from a gzip-compressed file with automatic chunks."""
    path, weights = folder / "gzip_preproc.h5", folder / "weights.pth"
    with h5py.File(path, "w") as file:
        some = make_cutouts(min(bench.rows, 20_000))
        every = np.resize(some, (bench.rows, *some.shape[1:]))
        file.create_dataset("train", data=every, compression="gzip", compression_opts=1)
    save_pth(weights, bench.net, options={}, epoch=0)
    kind = "trainer=gpu" if bench.device.type == "cuda" else "trainer=cpu"
    batch = 16 if bench.quick else 1024
    extract = [*bench.overrides, kind, f"data={path}", f"ckpt={weights}", "clobber=true"]
    quietly("extract", [*extract, f"loader.batch_size_valid={batch}", "debug=true"])
    said = quietly("extract", [*extract, f"loader.batch_size_valid={batch}"])
    match = re.search(r"\(([0-9.]+) rows/s\)", said)
    rate = float(match[1]) if match else float("nan")
    found = {"extraction": {"cutouts_per_s": rate, "share_of_peak": bench.share(rate, FORWARD_GFLOP), "said": said}}
    if bench.left > 60 or bench.quick:
        size = 16 if bench.quick else 256
        run = folder / "run"
        args = [*bench.overrides, kind, f"data={path}", f"out={run}", f"loader.batch_size_train={size}"]
        said = quietly("train", [*args, "trainer.max_epochs=2", "trainer.limit_train_batches=0.5"])
        with next((run / "learning_curve").glob("*.csv")).open() as table:
            rate = float(list(csv.DictReader(table))[-1]["samples_per_second"])
        found["training"] = {"samples_per_s": rate, "share_of_peak": bench.share(rate, STEP_GFLOP), "said": said}
    return found


def profiles(bench: Bench) -> dict[str, str]:
    """The ten dearest kernels of forward passes, and of forward and backward passes."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])
    sort = "self_cuda_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
    images = torch.randn(16 if bench.quick else 512, 1, SIDE, SIDE, device=bench.device)
    found = {}
    runner = make_runner(bench.net, "projection", "folded", tuple(images.shape))
    net = make_net(bench.options).train().to(bench.device, memory_format=torch.channels_last)

    precision = "bf16" if bench.device.type == "cuda" else "fp32"

    def train():
        with bench.autocast(precision):
            features = net(images)
        contrastive_loss(features.float().unflatten(0, (-1, 2))).backward()

    def infer():
        with torch.inference_mode(), bench.autocast("bf16"):
            runner(images)

    for name, call in {"forward": infer, "training": train}.items():
        call()
        with profile(activities=activities) as found_by:
            for _ in range(3):
                call()
            bench.wait()
        found[name] = found_by.key_averages().table(sort_by=sort, row_limit=10, max_name_column_width=60)
    return found


def show(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = ["# " + results["machine"].get("gpu", results["machine"]["cpu"]), ""]
    for section, found in results.items():
        lines += [f"## {section}", ""]
        for key, value in found.items() if isinstance(found, dict) else ():
            if isinstance(value, dict):
                short = {k: f"{v:,.4g}" if isinstance(v, float) else v for k, v in value.items() if k != "said"}
                value = ", ".join(f"{k} {v}" for k, v in short.items())
            lines.append(f"```\n{value}\n```" if "\n" in str(value) else f"- {key}: {value}")
        lines.append("")
    return "\n".join(lines)


def keep(path: Path, text: str) -> None:
    """Replace a file in one step: whoever kills the program finds all sections that had ended."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    temporary.replace(path)


def main() -> int:
    """Measure, section by section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no GPU is here: --device cpu --quick runs the same steps small on the CPU", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    bench = Bench(args.device, quick=args.quick, minutes=args.minutes)
    failed = 0
    name = re.sub(r"\W+", "-", bench.results["machine"].get("gpu", "cpu")).strip("-").lower()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        sections = [peak, forward, agreement, lambda b: whole_runs(b, Path(folder)), training_step, profiles]
        names = ["peak", "forward", "agreement", "runs", "training step", "profiles"]
        for section, measure in zip(names, sections, strict=True):
            start = time.monotonic()
            try:
                bench.results[section] = measure(bench) if bench.left > 0 else {"left out": "the time was over"}
            except Exception:  # of one section, which must not cost the others
                bench.results[section] = {"failed": traceback.format_exc()}
                failed += 1
            keep(args.out / f"gpu-{name}.json", json.dumps(bench.results, indent=1) + "\n")
            keep(args.out / f"gpu-{name}.md", show(bench.results))
            print(f"{section}: {time.monotonic() - start:.0f} s", flush=True)
    print(show(bench.results))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
