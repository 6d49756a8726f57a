"""Everything that touches disk: records and their readers, the mask cache, checkpoints, manifests. No torch."""
