"""Names of the files in an artifact folder."""

from __future__ import annotations

MANIFEST = "manifest.json"
LIBRARY = "model.so"
WEIGHTS = "weights.safetensors"
PLAN = "plan.json"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
REPORT = "report.md"

REQUIRED = frozenset({LIBRARY, WEIGHTS, PLAN})
OPTIONAL = frozenset({TOKENIZER, CHAT_TEMPLATE, GENERATION, REPORT})
LISTED = REQUIRED | OPTIONAL
"""Files the manifest lists with their digests; the manifest itself carries its own (``Manifest.self_sha256``)."""
