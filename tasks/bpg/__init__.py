"""BPG: scribbles and edges to masks."""
