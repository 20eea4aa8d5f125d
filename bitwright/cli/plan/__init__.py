"""``bitwright plan``: verbs that read plans."""
