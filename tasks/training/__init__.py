"""What every fit trains with: loop, samples, augmentation, weights, and the process it runs in."""
