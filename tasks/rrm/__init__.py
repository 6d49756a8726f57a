"""RRM as stages: both branches trained together, regions mined from the current maps; masks of the trained network."""
