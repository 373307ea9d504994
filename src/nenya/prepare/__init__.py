"""Fields, real or generated, to cutout files and their tables."""
