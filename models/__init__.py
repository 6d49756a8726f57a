"""Networks, losses and filters: tensors or arrays in and out, no files."""
