"""Would a side path pay? What low-rank and sparse corrections take from errors, against bits for the same bytes:

    python -m benchmarks.side_paths PROFILE [--sites layer.0.q,...] [--schemes c2g32,c3g32,c4g32] [--rank 8]

The error of a matrix is tr(E H E^T), with E what its codes in PROFILE are off by and H the second moment of its inputs.
A side path U V of rank r is the best one there is: the singular value decomposition of E H^(1/2), kept in int8 without
any error of its own. A sparse one makes those entries exact whose own correction gains most, 2 E_ij (E H)_ij -
E_ij^2 H_jj each: 2 bytes of value, 2 of place. `bits` is the share that as many bytes more in codes take, at a factor
of four per bit. A path pays where it takes more than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from bitwright.scheme import WeightScheme
from bitwright.sensitivity import Profile

Doubles = npt.NDArray[np.float64]

SPARSE_BYTES = 4
DEFAULT_SITES = ",".join(f"layer.{n}.{place}" for n in (0, 10, 20, 29) for place in ("q", "o", "mlp.1", "mlp.2"))


@dataclass(frozen=True)
class Shares:
    """Shares of a matrix's error, and of its bytes, by side path.

    Attributes:
        low_rank, sparse: of the error that the path takes.
        bits: what as many bytes take that are spent on codes.
        more: bytes of either path over those of the matrix.
    """

    low_rank: float
    sparse: float
    bits: float
    more: float


def shares(error: Doubles, moment: npt.NDArray[Any], rank: int, stored_bits: float) -> Shares:
    """Of a matrix [outputs, inputs] with ``stored_bits`` per weight, everything counted."""
    moment = moment.astype(np.float64)
    values, vectors = np.linalg.eigh(moment)
    spectrum = np.linalg.svd(error @ (vectors * np.sqrt(np.clip(values, 0, None))), compute_uv=False) ** 2
    path = rank * sum(error.shape)
    exact = path // SPARSE_BYTES
    whole = error @ moment
    gains = error * (2 * whole - error * np.diag(moment))
    rest = np.where(gains < np.partition(gains.ravel(), -exact)[-exact], error, 0)
    bits = 8 * path / error.size
    return Shares(
        low_rank=float(spectrum[:rank].sum() / spectrum.sum()),
        sparse=float(1 - np.sum((rest @ moment) * rest) / np.sum(whole * error)),
        bits=float(1 - 4.0**-bits),
        more=bits / stored_bits,
    )


def main(
    folder: Annotated[Path, typer.Argument(metavar="PROFILE", help="Folder made by `bitwright profile`, with codes.")],
    sites: Annotated[str, typer.Option(help="Linear layers, by commas.")] = DEFAULT_SITES,
    schemes: Annotated[str, typer.Option(help="Of those that were profiled.")] = "c2g32,c3g32,c4g32",
    rank: Annotated[int, typer.Option(help="Of the low-rank path; the sparse one has as many bytes.")] = 8,
) -> None:
    """Print a table: every site in every scheme."""
    typer.echo("| matrix | scheme | more bytes | low rank takes | sparse takes | bits would take |")
    typer.echo("|---|---|---|---|---|---|")
    found: list[Shares] = []
    for site, scheme, one in rows(Profile.read(folder), sites.split(","), schemes.split(","), rank):
        found.append(one)
        typer.echo(f"| {site} | `{scheme}` | {_percent(one.more, one.low_rank, one.sparse, one.bits)} |")
    middle = (
        float(np.median([getattr(one, name) for one in found])) for name in ("more", "low_rank", "sparse", "bits")
    )
    typer.echo(f"| median | | {_percent(*middle)} |")


def rows(profile: Profile, sites: list[str], schemes: list[str], rank: int) -> Iterator[tuple[str, str, Shares]]:
    """(site, scheme, shares) of each."""
    from bitwright.budgets.correction import Measurer

    measurer = Measurer(profile, lambda _: None)
    moments = measurer.transformed.moments
    model = measurer.simulation(np.zeros((0, 1), np.int64))
    for name in sites:
        site = profile.header.site(name)
        weights, moment = model.weights(site).astype(np.float64), None if moments is None else moments.of(site.weight)
        if moment is None:
            raise SystemExit(f"nothing is known of the inputs of {name}: its quantizer used no moments")
        for text in schemes:
            scheme = WeightScheme.parse(text)
            stored = scheme.bits + 16 / (scheme.group or site.shape[1])
            yield name, text, shares(model.dequantized(site, scheme) - weights, moment, rank, stored)


def _percent(*numbers: float) -> str:
    return " | ".join(f"{100 * number:.1f} %" for number in numbers)


if __name__ == "__main__":
    typer.run(main)
