"""What to compile for: the options of a compilation, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from bitwright.errors import UsageError
from bitwright.plan import Plan
from bitwright.rotated_parts import Part, parse_parts
from bitwright.scheme import CacheScheme, LinearScheme

DEFAULT_SCHEME = "u4g32a8"
DEFAULT_CONTEXT = 2048
DEFAULT_CHUNK = 512
LARGEST_CHUNK = 4096

QuantizerName = Literal["rtn", "clip", "gptq", "auto"]
QUANTIZERS: tuple[QuantizerName, ...] = get_args(QuantizerName)
"""See ``passes/quantizers/methods.py``."""


@dataclass(frozen=True)
class Options:
    """What to compile for.

    Attributes:
        scheme: of every linear layer, when there is no plan.
        table: of embedding and lm_head, when there is no plan; None: the same as ``scheme``.
        cache_bits: 16 or 32, when there is no plan; None: 32 for ``f32``, else 16.
        keys, values: of the K and of the V caches, when there is no plan; None: floats of ``cache_bits``.
        caches: of each cache site, by its name, when there is no plan, instead of ``keys`` and ``values``.
        plan: schemes by site, instead of all above.
        quantizer: how weights become codes.
        calibration: a text file that the quantizer calibrates on; None: text that the model samples itself.
        calibration_cache: folder that keeps what calibration found, None: it is thrown away.
        weigh_tokens: calibrate with tokens that count by the gradients at the layers' outputs; decoders only.
        rotate: what is rotated, behind equalisation and before everything else; see ``rotated_parts.py``.
        equalise: move factors between neighbouring layers first, so that channels share scales better.
        reorder: put hidden units and rows of the token table in order of what they cost, behind equalisation; needs
            ``weigh_tokens``.
        codes: folder ``codes`` of a profile, made of the same model by the same quantizer, transformed as here.
        reconstruct: training steps of every block's codes and scales after quantization; needs ``calibration``.
        distill: training steps of all codes and scales behind that; needs ``calibration``.
        stage_minutes: that reconstruction, and distillation, may take each; None: as long as their steps take. What a
            training that ends by time has reached depends on the machine's speed.
        target: a name that ``Target.parse`` knows.
        context: tokens the caches hold; None: the model's, at most DEFAULT_CONTEXT.
        chunk: most tokens in one call of prefill and score.
        records: file of tuning records; None: the user's own and those of the package.
        dump_ir: folder for the module after each phase.
        overwrite: replace an existing artifact.
    """

    scheme: LinearScheme = LinearScheme.parse(DEFAULT_SCHEME)  # noqa: RUF009 - a frozen value
    table: LinearScheme | None = None
    cache_bits: int | None = None
    keys: CacheScheme | None = None
    values: CacheScheme | None = None
    caches: Mapping[str, CacheScheme] | None = None
    plan: Plan | None = None
    quantizer: QuantizerName = "rtn"
    calibration: Path | None = None
    calibration_cache: Path | None = None
    weigh_tokens: bool = False
    rotate: tuple[Part, ...] = ()
    equalise: bool = False
    reorder: bool = False
    codes: Path | None = None
    reconstruct: int = 0
    distill: int = 0
    stage_minutes: float | None = None
    target: str = "native"
    context: int | None = None
    chunk: int = DEFAULT_CHUNK
    records: Path | None = None
    dump_ir: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.context is not None and self.context < 1:
            raise UsageError(f"a context of {self.context} tokens", limit="at least 1", remedy="leave --context out")
        if not 1 <= self.chunk <= LARGEST_CHUNK:
            raise UsageError(f"a prefill chunk of {self.chunk} tokens", limit=f"1 to {LARGEST_CHUNK}")
        if self.quantizer not in QUANTIZERS:
            raise UsageError(f"'{self.quantizer}' is not a quantizer", limit=", ".join(QUANTIZERS), remedy="use auto")
        self._check_training()
        calibrates = self.quantizer != "rtn" or self.reconstruct or self.distill or self.maps_caches
        if not calibrates and (self.calibration or self.calibration_cache):
            raise UsageError(
                "round-to-nearest does not calibrate",
                where="--calibration" if self.calibration else "--calibration-cache",
                remedy="choose a quantizer that does, such as --quantizer auto, or mapped caches such as --kv k4rowm",
            )
        if (self.equalise or self.weigh_tokens) and self.quantizer == "rtn":
            raise UsageError(
                "round-to-nearest does not calibrate, which this needs",
                where="--equalise" if self.equalise else "--weigh-tokens",
                remedy="choose a quantizer that does, such as --quantizer auto",
            )
        if self.reorder and not self.weigh_tokens:
            raise UsageError(
                "hidden units are put in order by gradients, which are not taken",
                where="--reorder",
                remedy="add --weigh-tokens",
            )
        if self.cache_bits not in (None, 16, 32):
            raise UsageError(f"a cache of {self.cache_bits} bits", limit="16 or 32", remedy="leave --kv-bits out")

    def _check_training(self) -> None:
        stages = {"reconstruction": ("--reconstruct", self.reconstruct), "distillation": ("--distill", self.distill)}
        for stage, (option, steps) in stages.items():
            if steps < 0:
                raise UsageError(f"{steps} steps of {stage}", limit="0 or more", remedy=f"try {option} 100")
            if steps and self.calibration is None:
                raise UsageError(
                    f"{stage} needs a text to train on",
                    where=option,
                    remedy="name one with --calibration: some hundred thousand tokens of what the model will read",
                )
        if self.stage_minutes is None:
            return
        if not 0 < self.stage_minutes < math.inf:
            raise UsageError(
                f"{self.stage_minutes:g} minutes for a stage", where="--stage-minutes", limit="more than 0"
            )
        if not (self.reconstruct or self.distill):
            raise UsageError(
                "minutes are given, but no stage that takes them",
                where="--stage-minutes",
                remedy="add --reconstruct 100 or --distill 100, or leave it out",
            )

    @property
    def stage_seconds(self) -> float | None:
        """``stage_minutes`` in seconds."""
        return None if self.stage_minutes is None else 60 * self.stage_minutes

    @property
    def maps_caches(self) -> bool:
        """Some caches are stored mapped, which asks for calibration."""
        planned = self.plan.schemes.values() if self.plan else (self.keys, self.values, *(self.caches or {}).values())
        return any(isinstance(scheme, CacheScheme) and scheme.mapped for scheme in planned)

    def describe(self) -> str:
        """The resolved options in one line."""
        given = [str(scheme) for scheme in (self.keys, self.values) if scheme is not None]
        if self.caches is not None:
            given = ["chosen one by one"]
        caches = f", caches {' '.join(given)}" if given else ""
        schemes = f"linear layers {self.scheme}, table {self.table or self.scheme}{caches}"
        rebuilt = f", {self.reconstruct} steps of reconstruction per block" if self.reconstruct else ""
        distilled = f" and {self.distill} steps of distillation" if self.distill else ""
        limit = f", at most {self.stage_minutes:g} minutes a stage" if self.stage_minutes is not None else ""
        schemes = "by plan" if self.plan else schemes
        weighed = ", tokens weighed" if self.weigh_tokens else ""
        rotated = f", rotated {' '.join(self.rotate)}" if self.rotate else ""
        equal = f"{', equalised' if self.equalise else ''}{', reordered' if self.reorder else ''}"
        quantizer = f"{self.quantizer}{weighed}{equal}{rotated}"
        return (
            f"{schemes}, quantizer {quantizer}{rebuilt}{distilled}{limit}, target {self.target}, "
            f"context {self.context or 'default'}, chunk {self.chunk}"
        )


def _chosen_caches(profile: str | Path | None, bits: float | None, context: int | None) -> Mapping[str, CacheScheme]:
    if profile is None or bits is None:
        raise UsageError(
            "caches are chosen from a profile, for a number of bits",
            where="--kv auto",
            remedy="run bitwright profile MODEL -o DIR, and add --profile DIR --kv-bits 4.25",
        )
    from bitwright.cache_choice import caches_of_profile

    return caches_of_profile(Path(profile), bits, context).schemes


def parse_caches(text: str) -> dict[str, CacheScheme]:
    """``k=k8g32,v=v4g32`` as schemes by ``k`` and ``v``; ``k=u8g32`` says the same, and either may be left out.

    Raises:
        UsageError: something else, or one of the two named twice.
    """
    schemes: dict[str, CacheScheme] = {}
    for part in (part.strip() for part in text.split(",") if part.strip()):
        letter, _, name = part.rpartition("=")
        scheme = CacheScheme.parse(letter + name[1:] if letter in ("k", "v") and name[:1] == "u" else name)
        if scheme.tensor in schemes or letter not in ("", scheme.tensor):
            raise UsageError(
                f"'{part}' does not say what the caches are", where="--kv", limit="k=SCHEME,v=SCHEME, each once"
            )
        schemes[scheme.tensor] = scheme
    return schemes


def make_options(
    *,
    scheme: str | None = None,
    table: str | None = None,
    kv: str | None = None,
    kv_bits: float | None = None,
    profile: str | Path | None = None,
    plan: str | Path | None = None,
    quantizer: str = "rtn",
    calibration: str | Path | None = None,
    calibration_cache: str | Path | None = None,
    weigh_tokens: bool = False,
    rotate: str | None = None,
    equalise: bool = False,
    reorder: bool = False,
    reconstruct: int = 0,
    distill: int = 0,
    stage_minutes: float | None = None,
    target: str = "native",
    context: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    records: str | Path | None = None,
    dump_ir: str | Path | None = None,
    overwrite: bool = False,
) -> Options:
    """Options from the names and paths that users write.

    Raises:
        UsageError: a scheme, target or number that makes no sense, or a plan together with schemes.
        InputError: the plan cannot be read.
    """
    given = {"--scheme": scheme, "--table": table, "--kv": kv, "--kv-bits": kv_bits}
    if plan is not None and any(value is not None for value in given.values()):
        raise UsageError(
            "a plan and schemes were given",
            where=", ".join(name for name, value in given.items() if value is not None),
            remedy="edit the plan, or leave --plan out",
        )
    chosen = _chosen_caches(profile, kv_bits, context) if kv == "auto" else None
    if chosen is not None:
        kv, kv_bits = None, None
    if kv_bits is not None and kv_bits not in (16, 32):
        raise UsageError(
            f"a cache of {kv_bits:g} bits", limit="16 or 32, or with --kv auto any number", remedy="add --kv auto"
        )
    caches = parse_caches(kv or "")
    return Options(
        scheme=LinearScheme.parse(DEFAULT_SCHEME if scheme is None else scheme),
        table=None if table is None else LinearScheme.parse(table),
        cache_bits=None if kv_bits is None else int(kv_bits),
        caches=chosen,
        keys=caches.get("k"),
        values=caches.get("v"),
        plan=None if plan is None else Plan.read(Path(plan)),
        quantizer=quantizer,  # type: ignore[arg-type]  # __post_init__ checks the value
        calibration=None if calibration is None else Path(calibration),
        calibration_cache=None if calibration_cache is None else Path(calibration_cache),
        weigh_tokens=weigh_tokens,
        rotate=() if rotate is None else parse_parts(rotate),
        equalise=equalise,
        reorder=reorder,
        reconstruct=reconstruct,
        distill=distill,
        stage_minutes=stage_minutes,
        target=target,
        context=context,
        chunk=chunk,
        records=None if records is None else Path(records),
        dump_ir=None if dump_ir is None else Path(dump_ir),
        overwrite=overwrite,
    )
