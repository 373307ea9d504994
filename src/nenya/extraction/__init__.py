"""Extraction of latents that loses nothing."""
