"""Latencies of imaginary machines, whose times add up exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitwright.runs import Scheme


class AdditiveLatencies:
    """What a machine defines is ``decode``, the same for every site."""

    chunk, decode_fixed, prefill_fixed = 64, 0.0, 0.0

    def decode(self, site: Any, scheme: Any) -> float:
        raise NotImplementedError

    def prefill(self, site: Any, scheme: Any) -> float:
        return 0.0

    def step(self, schemes: Mapping[str, Scheme]) -> float:
        return self.decode_fixed + sum(self.decode(None, scheme) for scheme in schemes.values())

    def prompt(self, schemes: Mapping[str, Scheme], tokens: int) -> float:
        return 0.0

    def reading(self, schemes: Mapping[str, Scheme]) -> AdditiveLatencies:
        return self
