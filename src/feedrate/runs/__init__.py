"""The life of a run: its folder and owner, resuming, restoring a trained model, provenance, comparison of two runs."""
