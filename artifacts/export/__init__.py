"""Stored masks as a data set in a folder: a file per format."""
