"""Compile a cell's plan, and measure the artifact: nothing is simulated."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.errors import UsageError
from bitwright.rotated_parts import Part
from bitwright.study.cell import Cell, Measurements
from bitwright.study.request import Stage, StudyRequest
from bitwright.target import Target
from bitwright.version import __version__

if TYPE_CHECKING:
    from bitwright.frontend.model import ImportedModel
    from bitwright.options import QuantizerName
    from bitwright.runtime.rows import Logits
    from bitwright.runtime.session import Session
    from bitwright.sensitivity import Profile
    from bitwright.study.solve import Desk

Tell = Callable[[str], None]


@dataclass
class Laboratory:
    """Compiles and measures in the folder of a report.

    Attributes:
        digest: of the canonical model.
        quantizer: how weights become codes.
        calibration: folder that keeps what it calibrated on; ``codes``: folder that keeps codes it made for a profile.
        rotate, equalise, reorder, weigh_tokens: as the profile was made.
        model: read when something must be compiled or compared, once.
    """

    request: StudyRequest
    folder: Path
    digest: str
    quantizer: QuantizerName
    calibration: Path
    codes: Path | None
    rotate: tuple[Part, ...]
    equalise: bool
    reorder: bool
    weigh_tokens: bool
    tell: Tell
    _model: list[ImportedModel] = field(default_factory=list, repr=False)
    _reference: list[Logits] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, desk: Desk, digest: str, profile: Profile) -> Laboratory:
        """Where the plans of a desk are compiled as one of its profiles was made.

        Raises:
            UsageError: that is not possible with the quantizer that the study names.
        """
        calibrates = desk.quantizer != "rtn"
        if profile.header.reordered and not calibrates:
            raise UsageError(
                "the profile is of units in order, which takes calibration",
                where=f"--quantizer {desk.quantizer}, {profile.folder}",
                remedy="leave --quantizer out, or use a profile without --reorder",
            )
        return cls(
            desk.request,
            desk.folder,
            digest,
            desk.quantizer,
            profile.folder / "calibration",
            desk.codes(profile),
            rotate=profile.header.rotated,
            equalise=calibrates and bool(profile.header.equalised),
            reorder=calibrates and bool(profile.header.reordered),
            weigh_tokens=calibrates and profile.header.weighed,
            tell=desk.tell,
        )

    @property
    def measurements(self) -> Measurements:
        return Measurements(self.folder / "measured")

    def found(self, cell: Cell, stage: Stage) -> Any:
        """What was measured of a cell before, else None; quality is found by the text it was measured on."""
        if cell.plan is None or (stage == "quality" and self.request.text is None):
            return None
        return self.measurements.find(self.key(cell, stage))

    def measure(self, cell: Cell) -> None:
        """Measure what is missing of the request's stages, and remove the artifact unless it is to be kept."""
        missing = [stage for stage in self.request.stages if self.found(cell, stage) is None]
        if not missing or cell.plan is None:
            return
        from bitwright.runtime.session import load

        artifact = self.compiled(cell)
        session = load(artifact, threads=self.request.threads)
        for stage in missing:
            self.tell(f"measure {stage}")
            value = self._quality(session) if stage == "quality" else self._speed(session)
            sizes = {
                "bytes": session.manifest.run_bytes,
                "kv_bytes_per_token": session.manifest.interface.cache_bytes_per_token,
                "kv_fixed_bytes": session.manifest.interface.cache_fixed_bytes,
            }
            self.measurements.put(self.key(cell, stage), sizes | value)
        if not self.request.keep:
            shutil.rmtree(artifact)

    def key(self, cell: Cell, stage: Stage) -> dict[str, Any]:
        """All that the result of a measurement depends on."""
        request = self.request
        common = {
            "stage": stage,
            "model": self.digest,
            "schemes": cell.digest,
            "target": Target.parse(cell.target).fingerprint,
            "quantizer": self.quantizer,
            "rotate": list(self.rotate),
            "equalise": self.equalise,
            "reorder": self.reorder,
            "weigh_tokens": self.weigh_tokens,
            "calibration": None if request.calibration is None else _sha256(request.calibration),
            "context": request.context,
            "bitwright": __version__,
        }
        if stage == "quality":
            assert request.text is not None
            return common | {"text": _sha256(request.text), "windows": request.windows, "window": request.window}
        return common | {
            "prompt": request.prompt,
            "new": request.new,
            "depths": list(request.depths),
            "repetitions": request.repetitions,
            "threads": request.threads,
        }

    def compiled(self, cell: Cell) -> Path:
        """Folder of the artifact of a cell, compiled unless it is still there."""
        from bitwright import pipeline
        from bitwright.options import Options
        from bitwright.runtime.artifact import Artifact

        folder = self.folder / "artifacts" / f"{cell.digest[:16]}-{Target.parse(cell.target).fingerprint}"
        if folder.exists():
            Artifact.open(folder)
            return folder
        calibrates = self.quantizer != "rtn"
        options = Options(
            plan=cell.plan,
            quantizer=self.quantizer,
            calibration=self.request.calibration if calibrates else None,
            calibration_cache=self.calibration if calibrates else None,
            rotate=self.rotate,
            equalise=self.equalise,
            reorder=self.reorder,
            weigh_tokens=self.weigh_tokens,
            codes=self.codes,
            target=cell.target,
            context=self.request.context,
        )
        pipeline.compile_model(self.model, folder, options, progress=self.tell)
        return folder

    @property
    def model(self) -> ImportedModel:
        if not self._model:
            from bitwright import pipeline

            self._model.append(pipeline.load_model(self.request.model, self.tell))
        return self._model[0]

    def _quality(self, session: Session) -> dict[str, Any]:
        from bitwright.runtime.evaluate import evaluate

        assert self.request.text is not None
        tokens = session.tokenizer.encode(self.request.text.read_text(encoding="utf-8"), special=False)
        found = evaluate(
            session.logits,
            tokens,
            context=self.request.window,
            reference=self._expected(),
            max_windows=self.request.windows,
            progress=lambda done, total: self.tell(f"measure quality: window {done} of {total}"),
        )
        return found.to_json()

    def _expected(self) -> Logits:
        """The float model's predictions, kept in the report's folder."""
        if not self._reference:
            from bitwright.frontend.interpreter import Interpreter
            from bitwright.runtime.reference_cache import ReferenceCache

            exact = Interpreter(self.model.graph).logits
            self._reference.append(ReferenceCache(self.folder / "reference", self.digest, exact))
        return self._reference[0]

    def _speed(self, session: Session) -> dict[str, Any]:
        from bitwright.runtime.bench import plan_tests, run_tests
        from bitwright.runtime.threads import choose_threads

        request = self.request
        threads = choose_threads(request.threads)
        prompts = plan_tests([request.prompt], [], [0], [threads], session.context)
        decoding = plan_tests([], [request.new], request.depths, [threads], session.context)
        rows = run_tests(session, [*decoding, *prompts], repetitions=request.repetitions)
        return {"rows": [row.to_dict() for row in rows]}


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError("the text cannot be read", where=str(path), limit=error.strerror) from error
