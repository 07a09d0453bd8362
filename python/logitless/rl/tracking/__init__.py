"""What a run records and says while it works: metrics, times, memory, checkpoints, progress."""
