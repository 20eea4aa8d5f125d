"""Rotations: orthonormal matrices that stand between layers, folded into weights wherever they can be."""
