"""Measures loaders: the trials of tune.py, the table of bench.py, and the settings that were found."""
