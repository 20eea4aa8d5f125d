"""Equalisation: positive factors per channel move between layers, so that matrices are easier to quantize."""
