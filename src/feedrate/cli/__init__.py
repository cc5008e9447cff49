"""The start of an entry point: Hydra, errors as one line, help, and building the objects that a configuration names."""
