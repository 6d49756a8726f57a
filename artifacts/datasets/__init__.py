"""Data sets as records: a file per format, and the one front for all of them."""

from artifacts.datasets.read import DataParams, read_split, remember_dataset

__all__ = ["DataParams", "read_split", "remember_dataset"]
