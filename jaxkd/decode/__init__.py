"""From frames to label sequences."""
