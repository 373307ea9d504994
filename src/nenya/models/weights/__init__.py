"""Weights by name: files, folders, repositories of the Hugging Face Hub, addresses; and their export."""
