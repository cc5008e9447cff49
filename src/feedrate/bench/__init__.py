"""Loaders measured by themselves: how fast, what for, and whether they have become slower."""
