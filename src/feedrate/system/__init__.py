"""Files, signals, processes, cores and memory limits: nothing of data or training."""
