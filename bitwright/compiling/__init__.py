"""The parts of a compilation, one module each; ``bitwright.pipeline`` calls them in their order."""
