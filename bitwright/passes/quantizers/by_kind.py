"""The quantizer of each kind of weight scheme."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitwright.passes.quantizers.codebook import best_codebook
from bitwright.passes.quantizers.matrix import QuantizedMatrix
from bitwright.passes.quantizers.rtn import round_to_nearest
from bitwright.scheme import WeightScheme


def quantize(weights: npt.NDArray[np.float32], scheme: WeightScheme) -> QuantizedMatrix:
    """Round to nearest for uniform schemes, the best codebook for codebook schemes.

    Raises:
        UnsupportedError: a group's scale does not fit half precision.
    """
    return best_codebook(weights, scheme) if scheme.is_codebook else round_to_nearest(weights, scheme)
