"""The quantizer of each matrix of a model: one method, with the moments of the matrix's own input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitwright.moments import Moments
from bitwright.options import QuantizerName
from bitwright.passes.quantizers.matrix import QuantizedMatrix, Quantizer
from bitwright.passes.quantizers.methods import quantize
from bitwright.program import Parameter
from bitwright.scheme import WeightScheme


@dataclass(frozen=True)
class SiteQuantizers:
    """Called with a parameter, gives its quantizer.

    Attributes:
        method: for all of them.
        moments: None: errors of all inputs count the same. So do those of a table that is only looked up.
        tell: called with the name of each matrix as it is quantized.
    """

    method: QuantizerName = "rtn"
    moments: Moments | None = None
    tell: Callable[[str], None] | None = None

    def __call__(self, parameter: Parameter) -> Quantizer:
        def quantizer(weights: npt.NDArray[np.float32], scheme: WeightScheme, _first: int) -> QuantizedMatrix:
            if self.tell is not None:
                self.tell(parameter.name)
            return quantize(self.method, weights, scheme, self._moment(parameter))

        return quantizer

    def _moment(self, parameter: Parameter) -> npt.NDArray[np.float32] | None:
        # Matrices are stacked only if they read the same activation.
        first = parameter.parts[0] if parameter.parts else parameter.name
        return None if self.moments is None or self.method == "rtn" else self.moments.of(first)
