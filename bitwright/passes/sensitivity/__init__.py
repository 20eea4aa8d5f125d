"""Sensitivity: how much an error of a site's numbers matters. Pure functions on arrays; metrics are plugins."""
