"""A torch interpreter of canonical ONNX graphs: oracle, calibration, gradients. Constructing one imports torch."""

from bitwright.frontend.interpreter.interpreter import Interpreter, cache_name
from bitwright.frontend.interpreter.registry import OpKey, supported_ops
from bitwright.frontend.interpreter.runner import Observation

__all__ = ["Interpreter", "Observation", "OpKey", "cache_name", "supported_ops"]
