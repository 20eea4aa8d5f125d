"""Profiles of a model, and plans that fit a budget: what ``profile``, ``allocate`` and ``compile --max-bytes`` do."""
