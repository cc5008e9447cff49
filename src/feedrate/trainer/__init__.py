"""The training loop and what belongs to it: device, precision, schedule, metrics, checkpoints, records."""
