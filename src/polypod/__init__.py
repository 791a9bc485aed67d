"""Polypod: one pod out of many chips."""

__version__ = "0.1.0"
