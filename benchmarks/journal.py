"""What the journal costs: extraction that keeps every finished block against the same loop that keeps rows in memory.

`python benchmarks/journal.py` lets a trivial model give precomputed latents of 256 dimensions, 10,000 rows a second as
if a device computed them, once into the raw files and the journal of an output, each block being on the disk before
it counts, and once into memory. It prints the times of the loops until the last row is safe, interleaved, medians of
5, and their ratio, and writes `outputs/bench/journal.json`. The final file, which both need, is made in the end and
counted apart.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch

from nenya.data.blocks import Block
from nenya.extraction.journal import BlockStore
from nenya.extraction.writer import LatentsWriter
from nenya.options.sections import TrainerOptions
from nenya.runtime.trainer import make_trainer

ROOT = Path(__file__).resolve().parents[1]
DIM = 256


class Precomputed(pl.LightningModule):
    """Gives the same latents for every block, at a pace."""

    def __init__(self, block: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.latents = torch.from_numpy(np.random.default_rng(0).standard_normal((block, DIM), dtype=np.float32))

    def predict_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        """Wait as long as a device would compute."""
        count = len(batch["images"])
        time.sleep(count / self.rate)
        return self.latents[:count]


class Batches:
    """Batches for the loop; a plain list would be taken for several loaders."""

    def __init__(self, batches: list[dict]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[dict]:
        return iter(self.batches)


class Memory(pl.Callback):
    """Keeps the rows."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []

    def on_predict_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        """Keep a copy of one block's."""
        self.parts.append(outputs.numpy().copy())


def run(callback: pl.Callback, blocks: list[Block], module: pl.LightningModule) -> float:
    """Run Lightning's loop over the blocks; return when it began."""
    batches = [
        {"images": torch.zeros(len(b), 1), "partition": b.partition, "start": b.rows.start, "number": b.number}
        for b in blocks
    ]
    options = TrainerOptions(accelerator="cpu", devices=1)
    trainer = make_trainer(options, callbacks=[callback], logger=False, enable_checkpointing=False)
    warnings.filterwarnings("ignore", message=".*infer the batch indices.*")  # of a loader that is none
    start = time.perf_counter()
    trainer.predict(module, Batches(batches), return_predictions=False)
    return start


def in_memory(blocks: list[Block], module: pl.LightningModule) -> float:
    """Return the seconds of the loop that keeps rows in memory."""
    start = run(Memory(), blocks, module)
    return time.perf_counter() - start


def with_journal(folder: Path, blocks: list[Block], module: pl.LightningModule) -> tuple[float, float]:
    """Return the seconds until the last row is safe, and those that the final file then takes."""
    store = BlockStore(folder / "noise_latents.h5", {"train": blocks[-1].rows.stop}, DIM)
    store.partial.mkdir()
    store.start({})
    writer = LatentsWriter(store)
    writer.blocks = blocks
    safe: list[float] = []
    store.assemble = noting(store.assemble, safe)  # type: ignore[method-assign]
    start = run(writer, blocks, module)
    end = time.perf_counter()
    store.path.unlink()
    return safe[0] - start, end - safe[0]


def noting(function: Callable, times: list[float]) -> Callable:
    """Return a function that also notes when it is called."""

    def call(*args, **kwargs):
        times.append(time.perf_counter())
        return function(*args, **kwargs)

    return call


def compare(folder: Path, rows: int, block: int, rate: float, repeats: int) -> dict[str, float]:
    """Return the medians of both, and by what share the journal is slower."""
    blocks = [Block(i, "train", range(a, min(a + block, rows))) for i, a in enumerate(range(0, rows, block))]
    module = Precomputed(block, rate)
    in_memory(blocks[:2], module)
    memory, journal, final = [], [], []
    for _ in range(repeats):
        memory.append(in_memory(blocks, module))
        seconds, assembly = with_journal(folder, blocks, module)
        journal.append(seconds)
        final.append(assembly)
        print(f"  memory {memory[-1]:.3f} s, journal {seconds:.3f} s, final file {assembly:.3f} s", flush=True)
    low, high = statistics.median(memory), statistics.median(journal)
    return {"rows": rows, "block_size": block, "dim": DIM, "memory_s": low, "journal_s": high,
            "rows_per_s": rows / high, "overhead_percent": 100 * (high / low - 1),
            "final_file_s": statistics.median(final)}  # fmt: skip


def main() -> None:
    """Compare, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--block", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default the one of temporary files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = compare(Path(folder), args.rows, args.block, args.rate, args.repeats)
    for name, value in result.items():
        print(f"{name:18s} {value:12.3f}")
    out = ROOT / "outputs" / "bench" / "journal.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    out.write_text(json.dumps({**result, **machine, "date": time.strftime("%Y-%m-%d")}, indent=1))


if __name__ == "__main__":
    main()
