"""Latents made up for tests."""

import numpy as np

DIM = 32


def latents(rows: int, seed: int) -> np.ndarray:
    """Rows of length 1 around a curved surface of three dimensions."""
    inner = np.random.default_rng(seed).uniform(-2, 2, (rows, 3))
    outward = np.random.default_rng(99).standard_normal((3, DIM))
    found = np.tanh(inner @ outward) + 0.05 * np.random.default_rng(seed + 1).standard_normal((rows, DIM))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
