"""The archive that grows: what is in it, how files are added, and who may write."""
