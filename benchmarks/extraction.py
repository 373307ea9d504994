"""Complete extractions, from an HDF5 file to a latents file, against ONNX Runtime's forward pass alone.

Contenders take turns on one gzip-compressed file with automatic chunks: nenya, in float32 and in bfloat16; a plain
script with PyTorch and a DataLoader; the original's loop. ONNX Runtime reads and writes nothing: it computes the same
cutouts from memory, in float32. Imports, weights and the export to ONNX are done before.

    python benchmarks/extraction.py [--network resnet50] [--rows 96] [--repeats 3] [--aim]

With one thread the processor's time is measured: on a shared machine, take `--threads 1`.
`--rows 2000 --repeats 1 --aim` leaves the two slow contenders out, and takes ten minutes for resnet50 on two cores.
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from clock import seconds
from common import interleave, machine, make_cutouts, medians, write
from peers.onnx_forward import onnx_forward
from peers.original_extraction import original_extraction
from peers.plain_extraction import plain_extraction

from nenya.extraction.batch import run
from nenya.models.checkpoint import save_pth
from nenya.models.resnet import ContrastiveNet
from nenya.options.commands import ExtractOptions
from nenya.options.flat import flat_view
from nenya.options.sections import build_options


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50", choices=["resnet18", "resnet34", "resnet50", "resnet101"])
    parser.add_argument("--rows", type=int, default=96, help="cutouts in the file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each contender")
    parser.add_argument("--backend", default="auto", help="model.backend of nenya")
    parser.add_argument("--aim", action="store_true", help="nenya and ONNX Runtime only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about, rows = machine(), arguments.rows
    logging.getLogger("nenya").setLevel(logging.ERROR)
    torch.manual_seed(0)
    net, three = (ContrastiveNet(arguments.network, 256, channels).eval() for channels in (1, 3))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, cutouts = folder / "cutouts.h5", make_cutouts(rows)
        with h5py.File(data, "w") as file:
            file.create_dataset("train", data=cutouts, compression="gzip")
        options, half = (
            build_options(
                ExtractOptions,
                {
                    "model": {"ssl_model": arguments.network, "backend": arguments.backend},
                    "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "precision": precision},
                    "data": str(data),
                    "ckpt": str(folder / "weights.pth"),
                    "out": str(folder / f"{precision}.h5"),
                    "clobber": True,
                },
            )
            for precision in ("32-true", "bf16-true")
        )
        save_pth(folder / "weights.pth", net, options=flat_view(options), epoch=1)
        size = options.loader.batch_size_valid
        forward = onnx_forward(net, torch.from_numpy(cutouts[:size]))
        whole = torch.from_numpy(cutouts[: rows // size * size])

        def onnxruntime():
            for batch in whole.split(size):
                forward(batch)

        contenders = {
            "onnxruntime, forward alone": lambda: len(whole) / seconds(onnxruntime),
            "nenya": lambda: rows / seconds(run, options),
            "nenya, bfloat16": lambda: rows / seconds(run, half),
        }
        if not arguments.aim:
            contenders |= {
                "plain script": lambda: rows / seconds(plain_extraction, net, data, folder / "plain.h5"),
                "original": lambda: rows / seconds(original_extraction, three, data, folder / "original.h5"),
            }
            run(options)  # what comes first takes longer
        figures = interleave(contenders, arguments.repeats)
        with h5py.File(folder / "32-true.h5") as ours, h5py.File(folder / "bf16-true.h5") as other:
            latents, backend = ours["train"][:], ours.attrs["backend"]
            cosines = (latents * other["train"][:]).sum(axis=1)
            agreement = json.loads(other.attrs["bfloat16_agreement"])
        difference = float(np.abs(latents[:size] - forward(whole[:size]).numpy()).max())
    assert difference < 1e-5, difference
    assert cosines.min() > 0.9999, cosines.min()
    rates = medians(figures)
    print(f"{rows} cutouts of 64 x 64, {arguments.network}, nenya {backend}; medians of {arguments.repeats}")
    for key, rate in rates.items():
        against = rate / rates["onnxruntime, forward alone"]
        gain = f"  {rate / rates['original']:>5.2f} of the original" if "original" in rates else ""
        print(f"  {key:<28}{rate:>7.2f} cutouts/s  {against:>5.2f} of onnxruntime{gain}")
    results = {
        "network": arguments.network,
        "rows": rows,
        "repeats": arguments.repeats,
        "backend": backend,
        "largest_difference": difference,
        "least_cosine_of_bfloat16": float(cosines.min()),
        "bfloat16_agreement": agreement,
        "cutouts_per_second": rates,
        "all": figures,
    }
    write("extraction_aim" if arguments.aim else "extraction", results, about)


if __name__ == "__main__":
    main()
