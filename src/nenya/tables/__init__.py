"""The rows of tables: how they are joined with cutout files and latents files."""
