"""What every contestant must compute: the logits of the reference folder in torch, kept beside the peers' files.

python -m benchmarks.reference FOLDER HOME      (writes HOME/reference.npz; in a process of its own for its memory)
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PROMPT = (504, 3575, 282, 4649, 314, 7042, 30, 657, 3364, 335, 253, 4052, 28, 284, 357)
"""Any token ids do, taken modulo the vocabulary: all sides get the same."""

FLOAT32_BYTES = 2 << 30
"""Larger checkpoints are computed in bfloat16 here, to spare memory."""

FLOAT_ERROR = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest relative error (root mean square over logits, against their spread) of an unquantized copy, by our dtype."""

LEAST_CORRELATION = 0.5
"""Of a quantized copy's logits with the reference's. A wrong graph gives about 0; rounding to 3 bits gave 0.76."""


@dataclass(frozen=True)
class Reference:
    """Logits behind ``ids``: float32 (vocab,), computed in ``dtype``."""

    ids: tuple[int, ...]
    logits: NDArray[np.float32]
    dtype: str

    def error(self, logits: NDArray[np.float32]) -> float:
        """Root mean square difference over the standard deviation of the reference's logits."""
        return float(np.sqrt(np.mean((logits - self.logits) ** 2)) / np.std(self.logits))

    def correlation(self, logits: NDArray[np.float32] | Sequence[float]) -> float:
        return float(np.corrcoef(np.asarray(logits), self.logits)[0, 1])

    def require_equal(self, logits: NDArray[np.float32], what: str) -> None:
        """Check an unquantized copy, or end the process."""
        error, limit = self.error(logits), FLOAT_ERROR[self.dtype]
        print(f"{what}: logits differ from torch's ({self.dtype}) by {error:.1e} of their spread", file=sys.stderr)
        if not error <= limit:
            raise SystemExit(f"{what} does not compute what the reference does: the limit is {limit}")

    def require_similar(self, logits: Sequence[float], what: str) -> float:
        """Check a quantized copy, or end the process; returns the correlation."""
        found = self.correlation(logits)
        if not found >= LEAST_CORRELATION:
            raise SystemExit(
                f"{what}: its logits correlate with the reference's by {found:.3f}; it is another model "
                f"(the limit is {LEAST_CORRELATION})"
            )
        return found


def home_of(folder: Path, work: Path) -> Path:
    """The folder for files made of these weights, named by their digest."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SystemExit(f"{folder} holds no *.safetensors: give a Hugging Face folder of a llama-architecture model")
    digest = hashlib.sha256()
    for file in (folder / "config.json", *files):
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    home = work / digest.hexdigest()[:16]
    home.mkdir(parents=True, exist_ok=True)
    return home


def reference(folder: Path, home: Path) -> Reference:
    """The reference of ``folder``, computed when it is not in ``home`` yet."""
    path = home / "reference.npz"
    if not path.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.reference", str(folder), str(home)], check=True)
    return load(home)


def load(home: Path) -> Reference:
    with np.load(home / "reference.npz") as stored:
        return Reference(tuple(stored["ids"].tolist()), stored["logits"], str(stored["dtype"]))


def compute(folder: Path) -> Reference:
    import torch
    from transformers import AutoModelForCausalLM

    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    dtype = torch.float32 if size <= FLOAT32_BYTES else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    ids = tuple(token % model.config.vocab_size for token in PROMPT)
    with torch.no_grad():
        logits = model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].float().numpy()
    return Reference(ids, logits, str(dtype).removeprefix("torch."))


def main() -> None:
    folder, home = map(Path, sys.argv[1:])
    found = compute(folder)
    temporary = home / "reference.tmp.npz"
    np.savez(temporary, ids=np.array(found.ids), logits=found.logits, dtype=np.array(found.dtype))
    temporary.replace(home / "reference.npz")


if __name__ == "__main__":
    main()
