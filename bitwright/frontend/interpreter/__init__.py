"""A torch interpreter of canonical ONNX graphs: oracle, calibration, gradients. Constructing one imports torch."""

from bitwright.frontend.interpreter.interpreter import Interpreter
from bitwright.frontend.interpreter.registry import OpKey, supported_ops
from bitwright.frontend.interpreter.runner import Observation

__all__ = ["Interpreter", "Observation", "OpKey", "supported_ops"]
