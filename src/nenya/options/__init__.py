"""Settings declared once and checked, and the files that set them."""
