"""Tasks that a model either solves or does not: last words, minimal pairs, retrieval. NumPy only.

Each task works on ``Likelihoods``, so that a compiled model and its float reference are scored by the same code.
"""
