"""DeepLab as stages, plain and with self-attention."""
