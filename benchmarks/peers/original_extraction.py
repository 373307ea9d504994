"""The original's extraction, written again to its published behaviour: the figure to beat.

One cutout is read at a time, from a file that is opened for it; its channel is repeated three times where the
network has three; the network computes in float32, batch norms and all; latents stay in memory until the end.
"""

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


class OriginalDataset(Dataset):
    """Cutouts (C, H, W) of one partition."""

    def __init__(self, path, partition, nchannels):
        self.path, self.partition, self.nchannels = path, partition, nchannels
        with h5py.File(path) as file:
            self.rows = file[partition].shape[0]

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        with h5py.File(self.path) as file:
            image = file[self.partition][row]
        return np.repeat(image, self.nchannels, axis=0)


def original_extraction(net, path, out, partition="train", batch_size=64):
    """Write the latents of a partition."""
    loader = DataLoader(OriginalDataset(path, partition, net.nchannels), batch_size, num_workers=1)
    with torch.no_grad():
        latents = [net(images).numpy() for images in loader]
    with h5py.File(out, "w") as file:
        file[partition] = np.concatenate(latents)
