"""Files, locks, secrets, signals, processes and cores: nothing of data or training."""
