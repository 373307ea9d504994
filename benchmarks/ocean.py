"""Trains `model=ocean`, the small network that nenya ships, the recipe as a whole.

`python benchmarks/ocean.py out=FOLDER data=FILES` generates oceans, makes cutouts of the real fields among `data=`
(files or folders, with commas; `ocean_data.py` names them, `docs/ocean_model.md` says where they are published), and
learns in two stages:

1. **Without clouds.** Two views of a cutout are square parts of 32, 48 or 64 pixels, at their own resolution, half of
   them turned by any angle, all of them flipped and turned by quarters. The loss is SimCLR's, plus the error of a
   linear prediction, from each view's latent, of statistics of the complete cutout (`ocean_data.statistics_of`). They
   come from its pixels; the parameters of the generator are used for nothing but the judgement.
2. **With clouds.** The network as it is then, the guide, sees each cutout without clouds; the network sees it under two
   clouds, and learns to give the same latent and to predict the same statistics.

A run that stopped resumes at its last epoch when it is started again; each epoch leaves `last.safetensors`. The same
seed gives the same batches; the bits of the weights depend on the machine and its threads. `device=cuda` takes a GPU.
`python benchmarks/ocean_probes.py` judges the result, `python benchmarks/ocean_package.py` packs it.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from common import machine
from ocean_data import GENERATED, Cutouts, generated, real, statistics_of
from torch import Tensor, nn
from torch.nn import functional

from nenya.data.clouds import CloudSampler, generated_shapes, turned
from nenya.models.checkpoint import save_safetensors, write_torch
from nenya.models.clouds import guided_loss
from nenya.models.losses import contrastive_loss
from nenya.models.resnet import ContrastiveNet

MODEL = {"ssl_model": "resnet18_scaled", "feat_dim": 64, "width": 16, "mask_channel": True}
VIEWS = {32: (32,), 48: (32, 32, 32, 32, 48), 64: (32, 32, 48, 48, 64), 96: (48, 48, 64)}
"""Side of a cutout -> sides of its views, equally often."""
TURNED = 0.5  # share of the views that are turned by any angle
TEMPERATURE, STATISTICS = 0.2, 3.0  # of SimCLR; weight of the prediction of statistics
GUIDED_RATE = 0.4  # learning rate with clouds, relative to that without
MOST_CLOUDS = 0.6
SHARES = {32: 0.15, 48: 0.4, 64: 0.2, 96: 0.1}  # of the batches; the rest are real cutouts
REAL = (100, 2000)  # a size of real cutouts counts by their number, within these


@dataclass
class Recipe:
    """What can be set on the command line.

    Attributes:
        out: folder of all files.
        data: real fields: files or folders, with commas.
        clear: steps of the first stage.
        cloudy: steps of the second.
        batch: cutouts of a step.
        rate: highest learning rate (AdamW).
        seed: of weights, batches, views and clouds.
        epoch: steps between two checkpoints.
        device: cpu or cuda.
        threads: of the CPU.
    """

    out: str = "outputs/ocean"
    data: str = ""
    clear: int = 5000
    cloudy: int = 1600
    batch: int = 64
    rate: float = 2e-3
    seed: int = 22
    epoch: int = 100
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Group:
    """Cutouts that batches are drawn from: images (n, S, S), masks or None, statistics (n, K), NaN where masked."""

    cutouts: Cutouts
    statistics: Tensor
    share: float


class Recorded(nn.Module):
    """The network and the linear prediction of the statistics from its latents."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.net = ContrastiveNet(**MODEL)
        self.linear = nn.Linear(MODEL["feat_dim"], count)

    def error(self, latents: Tensor, wanted: Tensor) -> Tensor:
        """Return the mean squared error of the prediction from latents (m, D) of statistics (m, K); NaN is skipped."""
        found = self.linear(latents * MODEL["feat_dim"] ** 0.5)
        known = torch.isfinite(wanted)
        return torch.where(known, found - wanted.nan_to_num(), 0.0).square().sum() / known.sum().clamp(min=1)


def groups_of(recipe: Recipe) -> list[Group]:
    """Return what is learnt from; statistics are standardised over all."""
    folder = Path(recipe.out)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [(generated(folder, size)["train"], SHARES[size]) for size in GENERATED]
    found = real(folder, [Path(word) for word in recipe.data.split(",") if word])
    sizes: dict[int, list[Cutouts]] = {}
    for of in found.values():
        if len(of["train"]):
            sizes.setdefault(of["train"].images.shape[-1], []).append(of["train"])
    joined = [_joined(some) for some in sizes.values()]
    counted = [min(max(len(some), REAL[0]), REAL[1]) for some in joined]
    rest = 1 - sum(SHARES.values())
    parts += [(some, rest * count / sum(counted)) for some, count in zip(joined, counted, strict=True)]
    raw = [_statistics(cutouts) for cutouts, _ in parts]
    everything = torch.cat(raw)
    everything = everything[torch.isfinite(everything).all(dim=1)]
    mean, spread = everything.mean(0), everything.std(0)
    return [
        Group(cutouts, ((values - mean) / spread).clamp(-4, 4), share)
        for (cutouts, share), values in zip(parts, raw, strict=True)
    ]


def _joined(parts: list[Cutouts]) -> Cutouts:
    masks = [torch.zeros(part.images.shape, dtype=torch.bool) if part.masks is None else part.masks for part in parts]
    joined = torch.cat(masks)
    return Cutouts(torch.cat([part.images for part in parts]), joined if bool(joined.any()) else None)


def _statistics(cutouts: Cutouts) -> Tensor:
    values = torch.cat([statistics_of(part) for part in cutouts.images.split(512)])
    if cutouts.masks is not None:
        values[cutouts.masks.flatten(1).any(dim=1)] = torch.nan
    return values


def batches(groups: list[Group], recipe: Recipe, step: int) -> Iterator[tuple[Tensor, Tensor | None, Tensor, int, Any]]:
    """Yield, from a step on, images (B, S, S), masks or None, statistics (B, K), side of the views, generator."""
    shares = torch.tensor([group.share for group in groups])
    while True:
        draw = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        group = groups[int(torch.multinomial(shares, 1, generator=draw))]
        rows = torch.randperm(len(group.cutouts), generator=draw)[: recipe.batch]
        sides = VIEWS.get(group.cutouts.images.shape[-1], (32,))
        side = sides[int(torch.randint(len(sides), (1,), generator=draw))]
        masks = None if group.cutouts.masks is None else group.cutouts.masks[rows]
        yield group.cutouts.images[rows], masks, group.statistics[rows], side, draw
        step += 1


def view(images: Tensor, masks: Tensor | None, side: int, draw: torch.Generator) -> Tensor:
    """Return a random view of each cutout: (B, 2, side, side), image and mask, at the cutout's own resolution."""
    count, size = images.shape[0], images.shape[-1]
    both = images[:, None] if masks is None else torch.stack([images, masks.to(images.dtype)], dim=1)
    first = [torch.randint(size - side + 1, (count, 1, 1), generator=draw) for _ in range(2)]
    steps = torch.arange(side)
    rows, cols = first[0] + steps[None, :, None], first[1] + steps[None, None, :]
    found = both[torch.arange(count)[:, None, None], :, rows, cols].permute(0, 3, 1, 2)
    if masks is None:  # a mask is only turned by quarters, which keeps it as it is
        chosen = (torch.rand(count, generator=draw) < TURNED).nonzero()[:, 0]
        found[chosen] = _at_any_angle(images[chosen], side, draw)
        found = torch.cat([found, torch.zeros_like(found)], dim=1)
    return turned(found, torch.randint(8, (count,), generator=draw))


def _at_any_angle(images: Tensor, side: int, draw: torch.Generator) -> Tensor:
    """Return a part of each cutout (n, S, S), turned by an angle; mirrored beyond its edges: (n, 1, side, side)."""
    count, size = images.shape[0], images.shape[-1]
    angle = 2 * math.pi * torch.rand(count, 1, 1, generator=draw)
    cos, sin = angle.cos(), angle.sin()
    room = (size / 2 - side / 2 * (cos.abs() + sin.abs())).clamp(min=0)
    middle = [(2 * torch.rand(count, 1, 1, generator=draw) - 1) * room for _ in range(2)]
    steps = torch.arange(side) - (side - 1) / 2
    y, x = steps[None, :, None], steps[None, None, :]
    grid = torch.stack([middle[0] + cos * x - sin * y, middle[1] + sin * x + cos * y], dim=-1) * (2 / size)
    how = {"mode": "bicubic", "padding_mode": "reflection", "align_corners": False}
    return functional.grid_sample(images[:, None], grid, **how)


def encoded(net: ContrastiveNet, views: Tensor, device: str) -> Tensor:
    """Return the latents (V, D) float32 of views (V, 2, S, S)."""
    views = views.to(device, memory_format=torch.channels_last)
    with torch.autocast(device, torch.bfloat16):
        return functional.normalize(net.project(views).float(), dim=1)


class Training:
    """The two stages, and their state.

    Args:
        recipe: as on the command line.
        groups: what is learnt from.
    """

    def __init__(self, recipe: Recipe, groups: list[Group]) -> None:
        self.recipe, self.groups, self.step = recipe, groups, 0
        torch.manual_seed(recipe.seed)
        self.model = Recorded(groups[0].statistics.shape[1]).to(recipe.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), recipe.rate, weight_decay=0.01)
        self.guide: ContrastiveNet | None = None
        self.clouds: dict[int, CloudSampler] = {}
        self.history: list[dict[str, float]] = []

    def rate(self) -> float:
        """Return the learning rate of this step: a short rise, then a cosine, in each stage."""
        recipe, step, steps, top = self.recipe, self.step, self.recipe.clear, self.recipe.rate
        if step >= steps:
            step, steps, top = step - steps, recipe.cloudy, GUIDED_RATE * top
        return top * min(1.0, (step + 1) / 50) * (1 + math.cos(math.pi * min(1.0, step / max(steps, 1)))) / 2

    def loss(self, images: Tensor, masks: Tensor | None, wanted: Tensor, side: int, draw: torch.Generator) -> Tensor:
        """Return the loss of a batch, of the stage that this step belongs to."""
        device, net, batch = self.recipe.device, self.model.net, len(images)
        views = torch.cat([view(images, masks, side, draw) for _ in range(2)])
        wanted = wanted.to(device)
        if self.step < self.recipe.clear:
            latents = encoded(net, views, device)
            pairs = latents.reshape(2, batch, -1).transpose(0, 1)
            plain = contrastive_loss(pairs, temperature=TEMPERATURE, base_temperature=TEMPERATURE)
            return plain + STATISTICS * self.model.error(latents, wanted.repeat(2, 1))
        self._begin_clouds()
        complete = views[:batch]
        twice = torch.cat([complete, turned(complete, torch.randint(8, (batch,), generator=draw))])
        if side not in self.clouds:
            self.clouds[side] = CloudSampler(generated_shapes(256, side, self.recipe.seed), MOST_CLOUDS, "mask")
        sampler = self.clouds[side]
        latents = encoded(net, sampler.lay(twice, sampler.draw(2 * batch, draw)), device)
        with torch.no_grad():
            assert self.guide is not None
            clear = encoded(self.guide, complete, device)
        pairs = latents.reshape(2, batch, -1).transpose(0, 1)
        return guided_loss(pairs, clear[:, None]) + STATISTICS * self.model.error(latents, wanted.repeat(2, 1))

    def _begin_clouds(self) -> None:
        if self.guide is None:
            self.guide = ContrastiveNet(**MODEL).to(self.recipe.device, memory_format=torch.channels_last)
            self.guide.load_state_dict(self.model.net.state_dict())
            self.guide.requires_grad_(False).eval()

    def run(self) -> None:
        """Learn from the last checkpoint on."""
        recipe, total = self.recipe, self.recipe.clear + self.recipe.cloudy
        self.restore()
        began, used, losses = time.monotonic(), time.process_time(), []
        for images, masks, wanted, side, draw in batches(self.groups, recipe, self.step):
            if self.step >= total:
                return
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            loss = self.loss(images, masks, wanted, side, draw)
            if not bool(torch.isfinite(loss)):
                raise RuntimeError(f"the loss became {float(loss)} in step {self.step}: lower rate=")
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
            self.step += 1
            if self.step % recipe.epoch == 0 or self.step in (recipe.clear, total):
                self.history.append({"step": self.step, "loss": sum(losses) / len(losses)})
                self.save()
                seconds, own = time.monotonic() - began, time.process_time() - used
                mean = self.history[-1]["loss"]
                print(f"step {self.step} of {total}: loss {mean:.3f}, {seconds:.0f} s, CPU {own:.0f} s", flush=True)
                losses.clear()

    def save(self) -> None:
        """Write the checkpoint, and the weights alone; both are the old or the new ones."""
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "guide": None if self.guide is None else self.guide.state_dict(),
            "history": self.history,
        }
        folder = Path(self.recipe.out)
        write_torch(state, folder / "last.ckpt")
        save_safetensors(folder / "last.safetensors", self.model.net, epoch=self.step)
        about = {"machine": machine(), "recipe": asdict(self.recipe), "step": self.step, "history": self.history}
        (folder / "run.json").write_text(json.dumps(about, indent=1))
        if self.step == self.recipe.clear:
            save_safetensors(folder / "clear.safetensors", self.model.net, epoch=self.step)

    def restore(self) -> None:
        """Resume from the checkpoint of the folder, if there is one."""
        path = Path(self.recipe.out) / "last.ckpt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location=self.recipe.device)
        self.step, self.history = state["step"], state["history"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["guide"] is not None:
            self._begin_clouds()
            assert self.guide is not None
            self.guide.load_state_dict(state["guide"])
        print(f"resumes at step {self.step}", flush=True)


def recipe_of(words: list[str]) -> Recipe:
    """Return the recipe of a command line of name=value."""
    kinds = {field.name: type(field.default) for field in fields(Recipe)}
    given = dict(word.partition("=")[::2] for word in words)
    if unknown := sorted(set(given) - set(kinds)):
        raise SystemExit(f"{unknown[0]}=: expected one of {', '.join(kinds)}")
    return Recipe(**{name: kinds[name](value) for name, value in given.items()})


def main() -> int:
    """Train."""
    logging.getLogger("nenya").setLevel(logging.WARNING)
    recipe = recipe_of(sys.argv[1:])
    torch.set_num_threads(recipe.threads)
    training = Training(recipe, groups_of(recipe))
    for group in training.groups:
        masked = 0 if group.cutouts.masks is None else int(group.cutouts.masks.flatten(1).any(1).sum())
        print(f"{tuple(group.cutouts.images.shape)}: share {group.share:.2f}, {masked} masked", flush=True)
    training.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
