"""The study: one model, target and budget, solved by several strategies, compiled and measured side by side."""
