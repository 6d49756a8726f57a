"""The cache on disk: arrays of images, checkpoints of fits, runs, locks."""
