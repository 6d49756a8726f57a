"""Configurations that ship with Maskmill, by name: ``--config demo``."""
