"""The growing archive: its contents, how files are added, and which process may write."""
