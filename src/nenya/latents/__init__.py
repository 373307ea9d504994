"""Latents files and all that is computed from them."""
