"""Boundaries of photographs: HED's weights, the stage, suppression of all but the crests."""
