"""The manifest of an artifact: what it is, what it needs, and the digest of every file.

The manifest protects against damage, not against an attacker who can rewrite the whole folder: it carries no signature.
Its own digest covers the canonical JSON (sorted keys, no spaces) of everything but the digest itself.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bitwright.errors import InputError, UnsupportedError
from bitwright.runtime.artifact import files

SCHEMA_VERSION = 1
MAX_MANIFEST_BYTES = 64 * 2**20

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
STATE_TYPES = ("float32", "float16", "int8", "uint8", "int32", "uint32", "int64")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelRecord(_Record):
    """The model that was compiled: a name for people and the sha256 of its graph and weights."""

    name: str
    digest: str


class StepRecord(_Record):
    """The function ``decode_step`` of ``model.so``, which decodes a token without the VM.

    Attributes:
        shared_bytes, private_bytes: memory it works in: once, and for each thread.
        threads: most threads it runs on.
        barrier_words: int64 words per thread that the barrier counts in.
        barriers: how often threads wait for each other in one step.
        tasks: what a thread does in order: (kernel, bytes of weights it reads, bytes of cache per cached token).
    """

    shared_bytes: Count
    private_bytes: Count
    threads: Positive
    barrier_words: Positive
    barriers: Positive
    tasks: tuple[tuple[str, Count, Count], ...] = Field(strict=False)

    @field_validator("tasks", mode="before")
    @classmethod
    def _tuples(cls, tasks: Any) -> Any:
        return tuple(tuple(task) for task in tasks) if isinstance(tasks, list) else tasks


class PeakRecord(_Record):
    """The function ``dot_peak`` of ``model.so``, a loop that only multiplies.

    Attributes:
        lanes: int32 lanes of a vector, which its arguments' shapes follow from.
        macs: multiply-adds of one thread in one call.
    """

    lanes: Positive
    macs: Positive


class Interface(_Record):
    """What ``model.so`` offers.

    Attributes:
        context: most tokens the cache holds (for an encoder: most tokens of one input).
        prefill_chunk: most tokens of one call of ``prefill`` or ``score`` (``encode`` takes up to ``context``).
        vocab: width of the logits (for an encoder: size of the embedding table).
        functions: Relax functions in the module, e.g. ``prefill``, ``decode``, ``score`` or ``encode``.
        token_types: rows of the token-type table; 0: ``encode`` takes no token types.
        weight_bytes_per_token: bytes of weights that one decode step reads (an untied embedding counts one row).
        cache_bytes_per_token: bytes of K and V that one cached position takes in all layers together.
        cache_fixed_bytes: bytes of K and V besides, whatever the context: tokens that are kept exact.
        recent_run: tokens of a run whose members see each other unpacked; 0: none. A call that begins inside such a run
            ends in it.
        macs_per_token, macs_per_chunk: multiply-adds of linear layers in a prompt, for each token, and for the last of
            each chunk alone (attention is not counted); 0 where they are not known.
        peak: the loop that prompts are compared with; None: the library has none.
        step: the decode step outside the VM; None: ``functions`` has a ``decode``.
    """

    context: Positive
    prefill_chunk: Positive
    vocab: Positive
    functions: tuple[str, ...] = Field(strict=False)
    token_types: Count = 0
    weight_bytes_per_token: Count
    cache_bytes_per_token: Count
    cache_fixed_bytes: Count = 0
    recent_run: Count = 0
    macs_per_token: Count = 0
    macs_per_chunk: Count = 0
    peak: PeakRecord | None = None
    step: StepRecord | None = None


class StateTensor(_Record):
    """One tensor of cache state, allocated once per session and updated in place."""

    name: str
    shape: tuple[Positive, ...] = Field(strict=False)
    dtype: str

    @field_validator("dtype")
    @classmethod
    def _known(cls, dtype: str) -> str:
        if dtype not in STATE_TYPES:
            raise ValueError(f"{dtype!r} is none of {', '.join(STATE_TYPES)}")
        return dtype


class TargetRecord(_Record):
    """The machine the code was made for.

    Attributes:
        arch: ``platform.machine()`` of the target, e.g. ``x86_64``.
        features: LLVM names of the ISA features that the code uses (``avx2``, ``fma``): a host lacking one is refused.
        fingerprint: ``Target.fingerprint``, for people and for tuning records.
        details: more about the target for people (CPU name, cores, caches).
    """

    arch: str
    features: tuple[str, ...] = Field(strict=False)
    fingerprint: str
    details: dict[str, str | int | float] = {}

    @field_validator("features")
    @classmethod
    def _sorted(cls, features: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(features)))


class Versions(_Record):
    """Versions of the tools; the TVM and tvm-ffi pair is an ABI and must be the one that is installed."""

    bitwright: str
    tvm: str
    tvm_ffi: str


class FileRecord(_Record):
    sha256: Sha256
    bytes: Count


class Manifest(_Record):
    """All of ``manifest.json`` (see the module's text)."""

    schema_version: Literal[1] = 1
    kind: Literal["decoder", "encoder"]
    model: ModelRecord
    interface: Interface
    state: tuple[StateTensor, ...] = Field(strict=False)
    weights: tuple[str, ...] = Field(strict=False)
    target: TargetRecord
    versions: Versions
    files: dict[str, FileRecord]
    seeds: dict[str, int] = {}
    digests: dict[str, str] = {}
    quality: dict[str, Any] = {}
    scheme: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        unknown = sorted(set(self.files) - files.LISTED)
        if unknown:
            raise ValueError(f"files: unknown names {', '.join(map(repr, unknown))}")
        missing = sorted(files.REQUIRED - set(self.files))
        if missing:
            raise ValueError(f"files: {', '.join(missing)} not listed")
        if len(set(self.weights)) != len(self.weights):
            raise ValueError("weights: a name appears twice")
        needed = {"prefill", "score"} if self.kind == "decoder" else {"encode"}
        if self.kind == "decoder" and self.interface.step is None:
            needed.add("decode")
        if not needed <= set(self.interface.functions):
            raise ValueError(f"interface.functions: a {self.kind} needs {', '.join(sorted(needed))}")
        return self

    @property
    def run_bytes(self) -> int:
        """Bytes needed to run: all weight tensors as stored, with their alignment padding and header."""
        return self.files[files.WEIGHTS].bytes

    def to_json(self) -> bytes:
        """The manifest as a file: indented, keys in order of declaration, ``self_sha256`` last. Byte-stable."""
        content = self.model_dump(mode="json")
        document = {**content, "self_sha256": _self_digest(content)}
        return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def parse_manifest(text: bytes, where: str) -> Manifest:
    """Parse and check ``manifest.json``.

    Raises:
        InputError: not JSON, a missing, unknown or ill-typed field, or a digest that does not match the content.
        UnsupportedError: a schema version this bitwright does not know.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("the manifest is not JSON", where=where, limit=str(error), remedy=_RECOMPILE) from error
    if not isinstance(document, dict):
        raise InputError("the manifest is not a JSON object", where=where, remedy=_RECOMPILE)
    version = document.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise UnsupportedError(
            f"the artifact has schema version {version!r}",
            where=where,
            limit=f"this bitwright reads version {SCHEMA_VERSION}",
            remedy="compile the model again, or run it with the bitwright version that wrote it",
        )
    digest = document.pop("self_sha256", None)
    if digest != _self_digest(document):
        raise InputError(
            "the manifest was changed after it was written",
            where=where,
            limit="self_sha256 must be the digest of the manifest's content",
            remedy=_RECOMPILE,
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "manifest"
        raise InputError(
            f"the manifest is not valid: {field}: {first['msg']}", where=where, remedy=_RECOMPILE
        ) from error


_RECOMPILE = "the folder is damaged or no artifact: copy it again or compile the model again"


def _self_digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
