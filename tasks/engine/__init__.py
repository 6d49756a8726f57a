"""What runs stages: the Runner, worker processes, fits, GPUs, progress."""
