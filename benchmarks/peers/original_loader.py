"""The original's training loader, written again to its published behaviour: the figure to beat.

Item by item: open the HDF5 file, read one cutout, and make two views of it with scikit-image, each flipped,
rotated (bilinear, zero fill), cropped around a jittered centre, resized to the input size, and freed of its
mean.
"""

import h5py
import numpy as np
import torch
from skimage import transform
from torch.utils.data import DataLoader, Dataset


def original_view(image: np.ndarray, crop: int, jitter: int, rng: np.random.Generator) -> np.ndarray:
    """Make one view of a cutout (H, W): (1, H, W) float32."""
    if rng.integers(2):
        image = image[:, ::-1]
    if rng.integers(2):
        image = image[::-1]
    image = transform.rotate(image, 360 * rng.random(), preserve_range=True)
    row, col = (size // 2 - crop // 2 + rng.integers(-jitter, jitter + 1) for size in image.shape)
    cut = image[max(row, 0) : row + crop, max(col, 0) : col + crop]
    view = transform.resize(cut, image.shape, order=1, anti_aliasing=False, preserve_range=True)
    return (view - view.mean())[None].astype(np.float32)


def read_item(path, row: int, partition: str = "train") -> np.ndarray:
    """Read one cutout (H, W)."""
    with h5py.File(path) as file:
        return file[partition][row, 0]


class OriginalDataset(Dataset):
    """Pairs of views (1, H, W) of the cutouts of one partition."""

    def __init__(self, path, partition="train", crop=40, jitter=5, seed=0):
        self.path, self.partition, self.crop, self.jitter = path, partition, crop, jitter
        self.rng = np.random.default_rng(seed)
        with h5py.File(path) as file:
            self.rows = file[partition].shape[0]

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        image = read_item(self.path, row, self.partition)
        return [original_view(image, self.crop, self.jitter, self.rng) for _ in range(2)]


def original_loader(path, batch_size, seed=0):
    """Return the loader, in random order, without worker processes."""
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(OriginalDataset(path, seed=seed), batch_size, shuffle=True, generator=generator)
