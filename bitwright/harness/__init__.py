"""The lm-evaluation-harness: ``lm_eval --model bitwright --model_args path=ARTIFACT,threads=2 --tasks ...``.

lm_eval finds the model through the entry point ``lm_eval.models`` of this package. Releases up to 0.4.13 know only
their own models; ``bitwright-lm-eval`` is their command line with this one added.
"""

from __future__ import annotations

import sys

from bitwright.errors import BitwrightError, UnsupportedError

NAME = "bitwright"


def register() -> None:
    """Make ``lm_eval.simple_evaluate(model="bitwright", ...)`` work in this process.

    Raises:
        UnsupportedError: lm_eval is not installed.
    """
    try:
        from lm_eval.api.registry import model_registry
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "the lm-evaluation-harness is not installed",
            where=f"Python package {error.name}",
            remedy="pip install 'bitwright[lm-eval]'",
        ) from error
    if NAME not in model_registry:
        model_registry.register(NAME, target="bitwright.harness.model:BitwrightLM")


def main() -> None:
    """``bitwright-lm-eval``: the command ``lm_eval``, with ``--model bitwright``."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except BitwrightError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
