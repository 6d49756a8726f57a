"""Constrained foreground segmentation (CFS), Xie et al., BMVC 2020."""
