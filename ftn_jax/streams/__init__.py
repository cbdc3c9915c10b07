"""Task streams: where the tasks, their batches and their splits come from."""
