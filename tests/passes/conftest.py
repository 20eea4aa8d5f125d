"""Programs to run passes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bitwright.frontend.relax.module import import_model
from bitwright.passes.find_sites import FindSites
from bitwright.passes.fuse_bias import FuseBias
from bitwright.program import Program
from tests.canonical_model import Shape, decoder

Prepare = Callable[..., Program]


@pytest.fixture
def prepare() -> Prepare:
    """A random decoder, imported, its sites found."""

    def make(**sizes: object) -> Program:
        program = import_model(decoder(Shape(**sizes)), capacity=64)  # type: ignore[arg-type]
        return FindSites()(FuseBias()(program))

    return make
