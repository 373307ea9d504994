"""Cutouts: reading, augmenting, serving, generating."""
