"""Class activation maps as two stages: learn which tags a picture has, show where."""
