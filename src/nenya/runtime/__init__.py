"""The trainer, processes, signals, threads, the ledger and progress."""
