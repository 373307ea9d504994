"""Values of the objectives by others, of numbers that anybody can make again: sine and cosine of integers.

`LIGHTLY` holds what lightly 1.6.0 (MIT licence, https://github.com/lightly-ai/lightly) returns in float64, by (B, D),
for z = numbers(1, B, D), w = 0.7 z + 0.3 numbers(2, B, D), s = [numbers(3, B, D), numbers(4, B, D)]:

    vicreg            VICRegLoss()(z, w)
    vicreg_weights    VICRegLoss(10, 5, 2, eps=1e-3)(z, w)
    barlow            BarlowTwinsLoss()(z, w)
    barlow_1          BarlowTwinsLoss(0.05)(z, w)
    cosine            NegativeCosineSimilarity()(z, w)
    simclr            NTXentLoss(0.2)(z, w)
    dino              DINOLoss(D, teacher_temp=0.07, student_temp=0.2)([z, w], s) with the centre numbers(5, D)
    centre            the first three numbers of its centre afterwards
    moco              NTXentLoss(0.2, memory_bank_size=(50, D))(z, w) with the bank numbers(6, 50, D), rows of length 1

The functions below are the papers' formulas in numpy, written as their sums.
"""

import numpy as np

LIGHTLY = {
    (2, 3): {
        "vicreg": 74.18789490719993,
        "vicreg_weights": 103.53054436466964,
        "barlow": 3.742652629965328,
        "barlow_1": 4.000020828365039,
        "cosine": -0.9866214710306056,
        "simclr": 0.003148438053379464,
        "dino": 7.822741746936491,
        "centre": [-1.4439206434017375, 0.6907257612390505, 0.238672764110762],
        "moco": 2.2759008684190336,
    },
    (16, 8): {
        "vicreg": 39.48144488293149,
        "vicreg_weights": 46.20895412580722,
        "barlow": 0.10287609574678229,
        "barlow_1": 0.7562111011777605,
        "cosine": -0.925665168306891,
        "simclr": 1.2604627433168345,
        "dino": 10.723265510856924,
        "centre": [-1.4224020595773346, 0.8411035981083897, 0.1993912872253121],
        "moco": 2.1208328818481363,
    },
    (64, 32): {
        "vicreg": 86.82843282398369,
        "vicreg_weights": 138.5678384576182,
        "barlow": 1.3586437237961264,
        "barlow_1": 11.531889964135837,
        "cosine": -0.9162494787711106,
        "simclr": 2.329679294633212,
        "dino": 14.555977102228818,
        "centre": [-1.4381615597535897, 0.8229956959306122, 0.2010515402460949],
        "moco": 1.9428662594957826,
    },
}


def numbers(seed: int, *shape: int) -> np.ndarray:
    """Return float64 numbers of a shape, the same on every machine up to rounding."""
    i = np.arange(int(np.prod(shape)), dtype=np.float64) + 1000 * seed
    return (np.sin(i * 1.7 + 0.3) * 2 + np.cos(i * i * 0.01)).reshape(shape)


def unit(x: np.ndarray) -> np.ndarray:
    """Return rows of length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x: np.ndarray) -> np.ndarray:
    """Return the softmax of rows."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def vicreg(z, w, invariance=25.0, variance=25.0, covariance=1.0, epsilon=1e-4):
    """Bardes 2022, eq. 1 to 6, with the divisors of the authors' code."""
    n, d = z.shape
    total = invariance * sum(((z[i] - w[i]) ** 2).sum() for i in range(n)) / (n * d)
    for x in (z, w):
        mean = x.sum(axis=0) / n
        c = sum(np.outer(x[i] - mean, x[i] - mean) for i in range(n)) / (n - 1)
        total += variance / 2 * sum(max(0.0, 1 - np.sqrt(c[j, j] + epsilon)) for j in range(d)) / d
        total += covariance * sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return total


def barlow_twins(z, w, redundancy=0.005):
    """Zbontar 2021, eq. 1 and 2."""
    d = z.shape[1]
    a, b = ((x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5) for x in (z, w))
    c = np.array([[(a[:, i] * b[:, j]).mean() for j in range(d)] for i in range(d)])
    off = sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j)
    return sum((1 - c[i, i]) ** 2 for i in range(d)) + redundancy * off


def byol(q, z):
    """Grill 2020, eq. 2."""
    return float(np.mean([2 - 2 * (a @ b) / np.sqrt((a @ a) * (b @ b)) for a, b in zip(q, z, strict=True)]))


def dino(student, teacher, centre, student_temp, teacher_temp):
    """Caron 2021, algorithm 1, for lists of views."""
    terms = []
    for i, given in enumerate(teacher):
        for j, asked in enumerate(student):
            if i != j:
                p, q = softmax((given - centre) / teacher_temp), softmax(asked / student_temp)
                terms.append(-(p * np.log(q)).sum(axis=1).mean())
    return float(np.mean(terms))


def moco(q, k, queue, temperature):
    """He 2020, eq. 1."""
    losses = []
    for a, b in zip(q, k, strict=True):
        logits = np.concatenate([[a @ b], queue @ a]) / temperature
        losses.append(np.log(np.exp(logits - logits[0]).sum()))
    return float(np.mean(losses))


def lars(weights, gradients, lr, momentum, decay, trust, *, adapted=True):
    """You 2017 as in the code of Barlow Twins and VICReg; the weights after a step for each gradient."""
    w, v = weights.copy(), np.zeros_like(weights)
    for g in gradients:
        if adapted:
            g = g + decay * w
            g = g * trust * np.sqrt((w**2).sum()) / np.sqrt((g**2).sum())
        v = momentum * v + g
        w = w - lr * v
    return w
