"""Extraction as a good engineer writes it in an hour: PyTorch, a DataLoader of slabs, channels last."""

import copy

import h5py
import torch
from torch.utils.data import DataLoader, Dataset


class Slabs(Dataset):
    """Slabs (n, 1, H, W) of neighbouring cutouts, from a file that stays open."""

    def __init__(self, path, partition, size):
        self.path, self.partition, self.size, self.data = path, partition, size, None
        with h5py.File(path) as file:
            self.rows = file[partition].shape[0]

    def __len__(self):
        return -(-self.rows // self.size)

    def __getitem__(self, number):
        if self.data is None:
            self.data = h5py.File(self.path)[self.partition]
        return torch.from_numpy(self.data[number * self.size : (number + 1) * self.size])


def plain_extraction(net, path, out, partition="train", batch_size=64):
    """Write the latents of a partition, batch by batch."""
    net = copy.deepcopy(net).eval().to(memory_format=torch.channels_last)
    slabs = Slabs(path, partition, batch_size)
    loader = DataLoader(slabs, batch_size=None, num_workers=1)
    with h5py.File(out, "w") as file, torch.inference_mode():
        latents = file.create_dataset(partition, (slabs.rows, net.feat_dim), "f4")
        for number, images in enumerate(loader):
            latents[number * batch_size : (number + 1) * batch_size] = net(images).numpy()
