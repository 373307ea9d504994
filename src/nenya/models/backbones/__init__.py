"""Encoders beside the ResNets: images (B, C, H, W) to pooled features (B, d)."""
