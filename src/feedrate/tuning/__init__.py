"""Finds the cheapest loader setting for a model (tune.py), and compares loaders without one (bench.py)."""
