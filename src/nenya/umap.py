"""names of the first nenya: UMAPs of latents; defined in `nenya.nenya_umap`."""

from nenya.nenya_umap import (
    DT_interval,
    cutouts_on_umap_grid,
    grid_umap,
    load,
    regional_analysis,
    umap_latents,
    umap_subset,
)

__all__ = [
    "DT_interval",
    "cutouts_on_umap_grid",
    "grid_umap",
    "load",
    "regional_analysis",
    "umap_latents",
    "umap_subset",
]
