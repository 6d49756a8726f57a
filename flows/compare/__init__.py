"""Several configurations of one flow side by side."""
