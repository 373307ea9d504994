"""Latents and their table in formats that other programs open: GeoParquet, STAC, Zarr and Lance; and opening them."""
