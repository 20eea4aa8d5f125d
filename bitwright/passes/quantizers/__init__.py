"""Quantizers: pure functions from a float matrix and a scheme to integer codes, scales and zero points."""
