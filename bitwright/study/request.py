"""What to study: options that are checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from bitwright.errors import UsageError
from bitwright.options import QUANTIZERS, QuantizerName

Stage = Literal["quality", "speed"]
STAGES: tuple[Stage, ...] = get_args(Stage)

DEFAULT_STRATEGIES = ("uniform", "two-level", "knapsack-fisher", "tile", "joint")


@dataclass(frozen=True)
class StudyRequest:
    """A study.

    Attributes:
        model: as users name it.
        budgets: bytes, each at least 1; weights, and caches when there is a ``context``.
        text: that quality is measured on; None: quality is not measured.
        strategies: names or patterns.
        targets: names that ``Target.parse`` knows; plans for each are measured on all of them.
        profiles: folders made by ``bitwright profile``; what is missing is profiled into the report's folder.
        latencies: files made by ``bitwright latency``, beside the user's own.
        context: cached tokens that count; None: caches do not.
        quantizer: how weights become codes; None: as in the profiles, else the best.
        calibration: text that it calibrates on; None: text that the model samples itself.
        windows: most windows of ``window`` tokens that quality is measured on; None: all.
        prompt, new, depths, repetitions: of the measurements of speed.
        threads: None: one per physical core.
        stages: what is measured now; what was measured before is kept.
        keep: artifacts stay.
    """

    model: str
    budgets: tuple[int, ...]
    text: Path | None = None
    strategies: tuple[str, ...] = DEFAULT_STRATEGIES
    targets: tuple[str, ...] = ("native",)
    profiles: tuple[Path, ...] = ()
    latencies: tuple[Path, ...] = ()
    context: int | None = None
    quantizer: QuantizerName | None = None
    calibration: Path | None = None
    windows: int | None = None
    window: int = 512
    prompt: int = 512
    new: int = 64
    depths: tuple[int, ...] = (0,)
    repetitions: int = 5
    threads: int | None = None
    stages: tuple[Stage, ...] = STAGES
    keep: bool = False

    def __post_init__(self) -> None:
        if not self.budgets or any(budget < 1 for budget in self.budgets):
            raise UsageError("a study needs budgets", limit="at least 1 byte", remedy="pass --max-bytes 60MB")
        if self.quantizer not in (None, *QUANTIZERS):
            raise UsageError(f"'{self.quantizer}' is not a quantizer", limit=", ".join(QUANTIZERS), remedy="use auto")
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or not self.stages:
            raise UsageError(f"'{', '.join(unknown)}' cannot be measured", where="--measure", limit=", ".join(STAGES))
        if "quality" in self.stages and self.text is None:
            raise UsageError(
                "quality is measured on a text", where="--text", remedy="pass --text FILE, or --measure speed alone"
            )
        if not self.targets:
            raise UsageError("a study needs a target", remedy="pass --target native")
