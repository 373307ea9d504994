"""Nenya turns archives of ocean images into latent vectors that people can search, map and trust."""

__version__ = "1.0.0.dev0"
