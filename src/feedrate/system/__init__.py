"""Files, locks, secrets, signals, processes, cores and text, for all other packages; imports none of them."""
