"""Disk, S3, paths and locks: an output is either complete or absent."""
