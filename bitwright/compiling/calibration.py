"""Calibration for a compilation: choose a text, run the float model over it, keep or throw away what was found."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.errors import InputError, UnsupportedError
from bitwright.moments import Moments, MomentStore, calibration_digest

if TYPE_CHECKING:
    from bitwright.frontend.interpreter import Interpreter
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Ids
    from bitwright.options import Options

WINDOWS, LENGTH = 32, 512
"""Of a text file: 16,384 tokens, ten times the width of the widest input of a 135M model."""

SAMPLED_WINDOWS, SAMPLED_LENGTH = 16, 256
"""Of sampled text, which costs a run of the model per token."""

SEED = 0

Tell = Callable[[str], None]


@contextmanager
def calibrated(model: ImportedModel, options: Options, tell: Tell) -> Iterator[Moments | None]:
    """The moments that the options' quantizer needs, None if it needs none; valid inside the block.

    Raises:
        InputError: the text cannot be read or is too short, or the model has no tokenizer.
        UnsupportedError: an encoder's tokens are to be weighed.
    """
    if options.quantizer == "rtn":
        yield None
    elif options.calibration_cache is not None:
        yield _moments(model, options, options.calibration_cache, tell)
    else:
        with tempfile.TemporaryDirectory(prefix="bitwright-") as folder:
            yield _moments(model, options, Path(folder), tell)


def _moments(model: ImportedModel, options: Options, folder: Path, tell: Tell) -> Moments:
    import torch

    from bitwright.frontend.calibrate.collect import collect
    from bitwright.frontend.interpreter import Interpreter

    interpreter = Interpreter(model.graph, device="cuda" if torch.cuda.is_available() else "cpu")
    windows = calibration_windows(model, interpreter, options.calibration, folder, tell)
    weighted = options.weigh_tokens
    if weighted and model.kind != "decoder":
        raise UnsupportedError(
            "tokens are weighed by gradients of the logits, which an encoder has not",
            where=model.name,
            remedy="leave --weigh-tokens out",
        )
    store = MomentStore(folder, calibration_digest(model.digest, windows, "by gradient" if weighted else ""))
    tick = _progress(tell, "calibrate: window")
    return collect(model, interpreter, windows, store, by_gradient=weighted, progress=tick)


def calibration_windows(
    model: ImportedModel, interpreter: Interpreter, text: Path | None, folder: Path, tell: Tell
) -> Ids:
    """Windows of a text file, or of text that a decoder samples itself and ``folder`` keeps: int64 [windows, tokens].

    Raises:
        InputError: the text cannot be read or is too short, or the model has no tokenizer.
    """
    if text is None and model.kind == "decoder":
        return _sampled(model, interpreter, folder, tell)
    return text_windows(model, text)


def text_windows(model: ImportedModel, text: Path | None, most: int = WINDOWS) -> Ids:
    """At most ``most`` windows of a text file in the model's tokens, int64 [windows, tokens]."""
    from tokenizers import Tokenizer

    from bitwright.frontend.calibrate.windows import spread

    if text is None:
        raise InputError(
            "an encoder cannot sample a text to calibrate on", where=model.name, remedy="give one with --calibration"
        )
    if model.tokenizer_json is None:
        raise InputError(
            "the model has no tokenizer to read the calibration text with",
            where=model.name,
            remedy="leave --calibration out: the model then samples a text itself",
        )
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            "the calibration text cannot be read", where=str(text), limit=reason, remedy="name a file of UTF-8 text"
        ) from error
    tokenizer = Tokenizer.from_str(model.tokenizer_json.decode())
    tokenizer.no_truncation()
    tokens = np.array(tokenizer.encode(content, add_special_tokens=False).ids, dtype=np.int64)
    try:
        return spread(tokens, min(LENGTH, model.context), most)
    except InputError as error:
        error.where = str(text)
        raise


def _sampled(model: ImportedModel, interpreter: Interpreter, folder: Path, tell: Tell) -> Ids:
    """The model's own text, from ``folder`` if it was sampled before."""
    from bitwright.frontend.calibrate.sample import sample

    length = min(SAMPLED_LENGTH, model.context)
    key = hashlib.sha256(f"{model.digest} {SAMPLED_WINDOWS} {length} {SEED}".encode()).hexdigest()[:32]
    path = folder / f"sampled-{key}.npy"
    if not path.is_file():
        progress = _progress(tell, "sample a text: window")
        windows = sample(model, interpreter, SAMPLED_WINDOWS, length, seed=SEED, progress=progress)
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, windows)
        part.replace(path)
    result: np.ndarray[Any, np.dtype[np.int64]] = np.load(path)
    return result


def _progress(tell: Tell, what: str) -> Callable[[int, int], None]:
    return lambda done, total: tell(f"{what} {done} of {total}")
