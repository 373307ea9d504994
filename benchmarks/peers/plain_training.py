"""SimCLR as a good engineer writes it in an hour with PyTorch: data set, DataLoader, network, loss, loop.

It shares no code with nenya. The views are those of the published recipe, by `affine_grid` and `grid_sample`.
"""

import math

import h5py
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, inside, width, stride):
        super().__init__()
        self.one, self.two = (
            nn.Conv2d(inside, width, 3, stride, 1, bias=False),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
        )
        self.norm_one, self.norm_two = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.short = (
            nn.Sequential(nn.Conv2d(inside, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            if stride > 1 or inside != width
            else nn.Identity()
        )

    def forward(self, x):
        out = self.norm_two(self.two(functional.relu(self.norm_one(self.one(x)))))
        return functional.relu(out + self.short(x))


class Network(nn.Module):
    """ResNet18 for small images, with a projection head."""

    def __init__(self, width=64, features=256, channels=1):
        super().__init__()
        layers, inside = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()], width
        for stage in range(4):
            for block in range(2):
                outside = width * 2**stage
                layers.append(Block(inside, outside, 2 if stage and not block else 1))
                inside = outside
        self.encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(inside, inside), nn.ReLU(), nn.Linear(inside, features))

    def forward(self, x):
        return functional.normalize(self.head(self.encoder(x)), dim=1)


class Views(Dataset):
    """Two random views of each cutout of a file, which is opened once a process."""

    def __init__(self, path, partition="train", crop=40, jitter=5):
        self.path, self.partition, self.crop, self.jitter, self.file = path, partition, crop, jitter, None
        with h5py.File(path) as file:
            self.rows = len(file[partition])

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        if self.file is None:
            self.file = h5py.File(self.path)
        image = torch.from_numpy(self.file[self.partition][row])
        return self.view(image), self.view(image)

    def view(self, image):
        flips = [axis for axis in (1, 2) if torch.rand(()) < 0.5]
        angle, size = float(torch.rand(())) * 2 * math.pi, image.shape[-1]
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
        grid = functional.affine_grid(turn[None], [1, 1, size, size], align_corners=False)
        turned = functional.grid_sample(image.flip(flips)[None], grid, align_corners=False)
        top, left = ((size - self.crop) // 2 + int(torch.randint(-self.jitter, self.jitter + 1, ())) for _ in range(2))
        cut = turned[..., top : top + self.crop, left : left + self.crop]
        view = functional.interpolate(cut, size=(size, size), mode="bilinear", align_corners=False)[0]
        return view - view.mean()


def loss_of(first, second, temperature=0.07):
    """NT-Xent loss of two batches of views (B, D)."""
    features = torch.cat([first, second])
    similarity = features @ features.T / temperature
    similarity.fill_diagonal_(-math.inf)
    count = len(first)
    partners = torch.cat([torch.arange(count, 2 * count), torch.arange(count)])
    return functional.cross_entropy(similarity, partners)


def step(network, optimizer, first, second):
    """One training step."""
    features = network(torch.cat([first, second]))
    loss = loss_of(*features.chunk(2))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def train(path, network, batch_size, epochs, workers, crop, jitter):
    """The complete training; returns the losses of the epochs."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(Views(path, crop=crop, jitter=jitter), batch_size, shuffle=True, num_workers=workers)
    losses = []
    for _ in range(epochs):
        every = [step(network, optimizer, first, second) for first, second in loader]
        losses.append(sum(every) / len(every))
    return losses
