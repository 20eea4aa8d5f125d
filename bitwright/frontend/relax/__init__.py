"""Canonical ONNX to Relax: one converter per operator, keyed by (domain, operator)."""
