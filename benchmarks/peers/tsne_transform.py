"""openTSNE's placing of new rows, for `benchmarks/maps.py`: `python tsne_transform.py TRAIN.npy NEW.npy OUT.npy`.

Runs in an environment of its own, with openTSNE, which nenya does not need. Prints rows a second.
"""

import sys
import time

import numpy as np
from openTSNE import TSNE


def main() -> None:
    train, new = (np.load(path) for path in sys.argv[1:3])
    fitted = TSNE(n_jobs=2, random_state=1).fit(train)
    fitted.transform(new[:100])
    start = time.perf_counter()
    places = fitted.transform(new)
    print(len(new) / (time.perf_counter() - start))
    np.save(sys.argv[3], np.asarray(places))


if __name__ == "__main__":
    main()
