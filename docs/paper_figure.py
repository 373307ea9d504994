# %% [markdown]
# # From a latents file to a figure for a paper
#
# The files are those of the [tour](tour.md): latents, the cutouts that they are of, and their table. The code is
# 22 lines; the same ones stand in {download}`paper_figure.py`, which runs in plain Python in the folder of these
# files.
#
# First the latents with their table. Each row has a latent, a place on the UMAP, and the other columns of the
# table.

# %%
import matplotlib.pyplot as plt
import numpy as np

from nenya.data.table_images import TableImages
from nenya.io import read_table
from nenya.latents.files import open_latents
from nenya.latents.index import FilesSearcher
from nenya.plotting.colours import colour_map

archive = FilesSearcher(open_latents("ocean_preproc_latents.h5"), read_table("map.parquet"))
table, DT = archive.table, (archive.table.T90 - archive.table.T10).to_numpy()

# %% [markdown]
# One cutout with strong fronts, at the 90th percentile of DT, and the seven cutouts with the most similar latents.
# The search is exact: it uses all dimensions of a latent, not the UMAP.

# %%
found = archive.search(archive.take(np.argsort(DT)[[-len(DT) // 10]])[0], k=8)
images = TableImages("ocean_preproc.h5", table).read(found.rows)

# %% [markdown]
# The UMAP in the colours of DT, with these eight cutouts marked, and their images, all in one range of colours. The
# colours are those of cmocean for anomalies: 0 has the neutral colour.

# %%
figure, axes = plt.subplot_mosaic("AA1234;AA5678", figsize=(10, 3.6), layout="constrained")
points = axes["A"].scatter(table.US0, table.US1, c=DT, s=3, vmax=np.quantile(DT, 0.99), rasterized=True)
axes["A"].scatter(table.US0[found.rows], table.US1[found.rows], s=30, facecolors="none", edgecolors="crimson")
axes["A"].set(xlabel="UMAP 1", ylabel="UMAP 2", title="(a) all cutouts, by their latents")
figure.colorbar(points, ax=axes["A"], label="DT = T90 - T10 (K)")
balance, reach = colour_map("balance"), abs(images).max()
for name, image, cosine in zip("12345678", images, found.cosine, strict=True):
    shown = axes[name].imshow(image, cmap=balance, vmin=-reach, vmax=reach, origin="lower")
    axes[name].set(xticks=[], yticks=[], title="(b) example" if name == "1" else f"cosine {cosine:.3f}")
figure.colorbar(shown, ax=[axes[name] for name in "12345678"], label="SSTa (K)")
figure.savefig("paper_figure.pdf", dpi=300)
