"""Calibration: what the layers of a model read when it reads text. Needs torch."""
