"""Feedrate: PyTorch experiments in which the accelerator never waits for data, and every run says whether it did."""

__version__ = "0.1.0"
