"""Placing new rows on a map: rows a second of ours, exact and approximate, and of umap-learn's own transform.

`python benchmarks/maps.py [training rows] [new rows]`. Also: how far the places differ, what share of the neighbours
the approximate search finds, and how well the places keep neighbourhoods (trustworthiness of the new rows).
"""

import resource
import sys
import time

import numpy as np
from common import interleave, machine, medians, write
from sklearn.manifold import trustworthiness

from nenya.latents.projector import Projector

DIM, REPEATS = 256, 3


def latents(rows: int, seed: int) -> np.ndarray:
    """Make rows of length 1 around a curved surface of eight dimensions: (rows, 256) float32."""
    rng = np.random.default_rng(seed)
    outward = np.random.default_rng(99).standard_normal((8, DIM))
    found = np.tanh(0.5 * rng.standard_normal((rows, 8)) @ outward) + 0.1 * rng.standard_normal((rows, DIM))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def rate(place, rows) -> float:
    start = time.perf_counter()
    place(rows)
    return len(rows) / (time.perf_counter() - start)


def quality(n_train: int, new: np.ndarray) -> dict:
    """Compare with umap-learn on a fit of its own."""
    import umap

    train = latents(n_train, 0)
    mapper = umap.UMAP(random_state=1, n_jobs=1).fit(train)
    projector = Projector.fit(train, embedding=mapper.embedding_)
    reseeded = umap.UMAP(random_state=1, n_jobs=1, transform_seed=7, n_epochs=0, init=mapper.embedding_.astype(float))
    reseeded.fit(train)
    reseeded.embedding_, reseeded.n_epochs = mapper.embedding_, None
    places = {"exact": projector.transform(new), "approximate": projector.transform(new, approximate=True)}
    places["umap-learn"] = mapper.transform(new)
    places["umap-learn, other seed"] = reseeded.transform(new)
    near = [index.search(new, 15)[1] for index in (projector._neighbours, projector._lists)]
    theirs = rate(mapper.transform, new[: len(new) // 2])
    return {
        "layout_width": float(np.ptp(mapper.embedding_, axis=0).max()),
        "trustworthiness": {name: float(trustworthiness(new, found)) for name, found in places.items()},
        "median_distance_to_umap_learn": {
            name: float(np.median(np.linalg.norm(found - places["umap-learn"], axis=1)))
            for name, found in places.items()
            if name != "umap-learn"
        },
        "approximate_to_exact": {
            "recall": float(np.mean([len(set(a) & set(b)) / 15 for a, b in zip(*near, strict=True)])),
            "median": float(np.median(np.linalg.norm(places["approximate"] - places["exact"], axis=1))),
            "99th": float(np.percentile(np.linalg.norm(places["approximate"] - places["exact"], axis=1), 99)),
        },
        "umap_learn_rows_per_s": theirs,
        "training_rows": n_train,
    }


def main() -> None:
    n_train, n_new = map(int, (sys.argv[1:] + ["50000", "8192"][len(sys.argv) - 1 :]))
    about = machine()
    train, new = latents(n_train, 0), latents(n_new, 5)
    projector = Projector.fit(train, embedding=20 * train[:, :2])
    contenders = {
        name: (lambda approximate=approximate: rate(lambda x: projector.transform(x, approximate=approximate), new))
        for name, approximate in (("exact", False), ("approximate", True))
    }
    for run in contenders.values():
        run()
    speed = medians(interleave(contenders, REPEATS))
    near = [index.search(new, 15)[1] for index in (projector._neighbours, projector._lists)]
    recall = float(np.mean([len(set(a) & set(b)) / 15 for a, b in zip(*near, strict=True)]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    compared = quality(min(n_train, 5000), new[:1500])
    print(f"{n_train} training rows of {DIM}: recall of the approximate search {recall:.3f}, peak {peak:.2f} GiB")
    for name, value in speed.items():
        print(f"{name:24s} {value:8.0f} rows/s")
    print(f"{'umap-learn':24s} {compared['umap_learn_rows_per_s']:8.0f} rows/s on {compared['training_rows']} rows")
    for key, value in compared.items():
        print(key, value)
    results = {"training_rows": n_train, "rows_per_s": speed, "recall": recall, "peak_gib": peak, "quality": compared}
    write("maps", results, about)


if __name__ == "__main__":
    main()
