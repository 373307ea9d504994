"""The forward pass of extraction: nenya's backends against ONNX Runtime, the original's way, and the machine's peak.

The original computes in float32 by PyTorch as it comes, on the channel repeated three times. The peak is what the
matrix multiplication and a convolution of this machine reach in the same run. `pays from` is the number of cutouts
from which building or compiling a backend is repaid, against the one it replaces. With one thread
the processor's time is measured, which other programs disturb least: on a shared machine, take `--threads 1`.

    python benchmarks/forward.py [--batch 32] [--networks resnet18 resnet50 demo] [--no-compile]
"""

import argparse

import torch
from clock import now, seconds
from common import interleave, machine, medians, write
from peers.onnx_forward import onnx_forward

from nenya.models.inference import count_multiply_adds, make_runner, obstacle
from nenya.models.resnet import ContrastiveNet

NETWORKS = {
    "resnet18": ("resnet18", 64, 256, 64),
    "resnet50": ("resnet50", 64, 256, 64),
    "demo": ("resnet18", 16, 64, 32),
}
"""Name -> depth, width, length of a latent, side of the cutouts in pixels."""
AGAINST = {"packed": "eager", "folded": "eager", "compiled": "folded", "compiled, where packed is": "packed"}


def peak():
    """Return the GFLOP/s of a matrix multiplication and of a convolution, by what measures them once."""
    a, x, w = torch.randn(1536, 1536), torch.randn(16, 256, 16, 16), torch.randn(256, 256, 3, 3)
    x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    return {
        "matrix multiplication": lambda: 2e-9 * 1536**3 / seconds(lambda: a @ a),
        "convolution": lambda: 2e-9 * 16 * 256 * 256 * 9 * 256 / seconds(lambda: torch.conv2d(x, w, padding=1)),
    }


def build(name, batch, compiling):
    """Return the cost of each backend in s, and contenders: name -> a call that computes one batch."""
    depth, width, length, side = NETWORKS[name]
    torch.manual_seed(0)
    net = ContrastiveNet(depth, length, 1, width).eval()
    three = ContrastiveNet(depth, length, 3, width).eval()
    images = torch.randn(batch, 1, side, side)
    repeated = images.repeat(1, 3, 1, 1)
    exported = onnx_forward(net, images)
    costs, calls = {}, {"original": lambda: three(repeated), "onnxruntime": lambda: exported(images)}
    wanted = net(images)
    for backend in ("eager", "folded", "packed", "compiled"):
        if obstacle(backend, "cpu", "32-true") or (backend == "compiled" and not compiling):
            continue
        start = now()
        run = make_runner(net, "projection", backend, images.shape)
        if backend == "compiled":
            run(images)
        costs[backend] = now() - start
        assert (run(images) - wanted).abs().max() < 1e-5
        calls[backend] = lambda run=run: run(images)
    return net, side, costs, calls


def pays_from(costs, rates):
    """Return from how many cutouts on the cost of a backend is repaid, None where it never is."""
    found = {}
    for name, before in AGAINST.items():
        backend = name.split(",")[0]
        if {backend, before} <= costs.keys():
            gain = 1 / rates[before] - 1 / rates[backend]
            found[name] = round(max(0, costs[backend] - costs[before]) / gain) if gain > 0 else None
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32, help="cutouts a forward pass")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each contender")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes its time")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about, results = machine(), {"batch": arguments.batch, "repeats": arguments.repeats, "networks": {}}
    for name in arguments.networks:
        with torch.inference_mode():
            net, side, costs, calls = build(name, arguments.batch, not arguments.no_compile)
            timed = {key: lambda call=call: arguments.batch / seconds(call) for key, call in calls.items()}
            figures = interleave({**timed, **peak()}, arguments.repeats)
        rates = medians(figures)
        limits = {key: rates.pop(key) for key in peak()}
        flop = 2e-9 * count_multiply_adds(net, side, side)
        results["networks"][name] = {
            "gflop_per_cutout": flop,
            "peak_gflops": limits,
            "cutouts_per_second": rates,
            "seconds_to_build": costs,
            "pays_from_cutouts": pays_from(costs, rates),
            "all": figures,
        }
        print(f"{name}, {side} x {side}, batch {arguments.batch}, {flop:.2f} GFLOP a cutout")
        print("  peak: " + ", ".join(f"{key} {value:.0f} GFLOP/s" for key, value in limits.items()))
        for key, rate in rates.items():
            print(
                f"  {key:<12}{rate:>8.1f} cutouts/s  {rate * flop:>5.0f} GFLOP/s  "
                f"{rate / rates['onnxruntime']:>5.2f} of onnxruntime  {rate / rates['original']:>5.2f} of the original",
                flush=True,
            )
        print("  pays from: " + ", ".join(f"{key} {value}" for key, value in pays_from(costs, rates).items()))
    write("forward", results, about)


if __name__ == "__main__":
    main()
