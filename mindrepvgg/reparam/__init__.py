"""Structural re-parameterisation: branches, the blocks that have them, and their folding into one convolution."""
