"""Restoration networks: from (N, 3, H, W) in [0, 1] to the same shape."""
