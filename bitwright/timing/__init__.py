"""Times of kernels and models on this machine: what ``tune`` and ``latency`` do."""
