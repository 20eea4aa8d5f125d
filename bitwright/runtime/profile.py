"""Take a decode step or a chunk of a prompt apart into kernels.

Two sources: the flattened decode step notes the processor's cycle counter between its tasks; functions that run in the
VM (prompts, and decoding where the step could not be flattened) are timed through the VM's instrument, which gets each
kernel and its arguments before the call and makes the call itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bitwright.errors import UsageError
from bitwright.runtime.breakdown import Breakdown, KernelTime, median_times, sum_by_name
from bitwright.tvm_runtime import load_runtime

if TYPE_CHECKING:
    import numpy as np

    from bitwright.runtime.session import Session

_SKIP = 1  # VMInstrumentReturnKind::kSkipRun: the instrument has made the call
_RUN = 0
_BUILTIN = "vm."
_NOTHING_CALLS = 200
_SEED = 0
TURNS = 4


def profile_step(
    session: Session, tokens: int, depth: int, read: Callable[[], float], *, repetitions: int = 5, turns: int = TURNS
) -> Breakdown:
    """Profile the processing of ``tokens`` tokens behind ``depth`` others: a decode step if it is one, else a chunk.

    Args:
        read: measures the bandwidth to compare with, bytes per second.
        repetitions: rounds of reading, then of plain and profiled runs in turns, the first two of which are not
            counted: they find the weights displaced by the reading. Medians are taken.
        turns: that are counted, of each round.

    Raises:
        UsageError: more tokens than one chunk holds.
    """
    import numpy as np

    chunk = session.manifest.interface.prefill_chunk
    if not 1 <= tokens <= chunk:
        raise UsageError(f"{tokens} tokens cannot be profiled", limit=f"1 to {chunk}, the chunk of this artifact")
    ids = np.random.default_rng(_SEED).integers(0, session.vocab, depth + tokens)
    if session.position != depth:  # else the tokens that are there will do
        session.reset()
        if depth:
            session.prefill(ids[:depth])
    new = ids[depth:]
    step = session.module.decode_step
    bandwidths, plain, runs = [], [], []
    for _ in range(repetitions):
        bandwidths.append(read())
        for turn in range(turns + 1):
            _plain(session, new)  # wakes the threads, which sleep soon after they have nothing to do
            seconds = _plain(session, new)
            if tokens == 1 and step is not None:
                kernels = step.profile(int(new[0]), depth, session.threads)
            else:
                kernels = _instrumented(session, new)
            if turn:
                plain.append(seconds)
                runs.append(kernels)
    return Breakdown(
        test="tg1" if tokens == 1 else f"pp{tokens}",
        depth=depth,
        threads=session.threads,
        seconds=statistics.median(plain),
        kernels=median_times(runs),
        bandwidth=statistics.median(bandwidths),
        samples=tuple(plain),
    )


def _plain(session: Session, new: np.ndarray) -> float:
    """Seconds of one run, after which the cache is as before."""
    depth = session.position
    seconds = _append(session, new)
    session.rewind(depth)
    return seconds


def _append(session: Session, new: np.ndarray) -> float:
    """Seconds of one run."""
    ids = new.tolist()
    start = time.perf_counter()
    if len(ids) == 1:
        session.advance(ids[0])
    else:
        session.prefill(ids)
    return time.perf_counter() - start


def _instrumented(session: Session, new: np.ndarray) -> list[KernelTime]:
    module, depth = session.module, session.position
    end = depth + len(new)
    weights, state = module.weight_bytes, module.state_bytes
    capacity, per_call = session.manifest.interface.context, _cost_of_a_call()
    calls: list[KernelTime] = []

    def instrument(function: Callable[..., Any], name: str, before: bool, _result: Any, *arguments: Any) -> int:
        if not before or name.startswith(_BUILTIN):
            return _RUN
        start = time.perf_counter()
        function(*arguments)
        seconds = time.perf_counter() - start - per_call
        calls.append(KernelTime(name, 1, max(seconds, 0.0), _bytes_read(arguments, weights, state, end / capacity)))
        return _SKIP

    with module.instrumented(instrument):
        _append(session, new)
    session.rewind(depth)
    return sum_by_name(calls)


def _bytes_read(arguments: Any, weights: dict[int, int], state: dict[int, int], filled: float) -> int:
    """Bytes of weights and cache that a kernel call reads, known by the addresses of its arguments.

    Results stand last: a kernel whose last tensor is a weight or a cache has none, so it writes the caches it is given.
    Whoever takes int64 (ids, positions) looks rows of its tables up, which count as nothing.
    """
    tensors = [argument for argument in arguments if hasattr(argument, "data_ptr")]
    addresses = [tensor.data_ptr() for tensor in tensors]
    looks_up = any(str(tensor.dtype) == "int64" for tensor in tensors)
    writes_state = bool(addresses) and (addresses[-1] in state or addresses[-1] in weights)
    read = 0 if looks_up else sum(weights.get(address, 0) for address in addresses)
    return read + (0 if writes_state else round(filled * sum(state.get(address, 0) for address in addresses)))


def _cost_of_a_call() -> float:
    """Seconds that Python takes to call a function that does nothing."""
    nothing = load_runtime().get_global_func("testing.nop")
    start = time.perf_counter()
    for _ in range(_NOTHING_CALLS):
        nothing(0, 0, 0, 0, 0)
    return (time.perf_counter() - start) / _NOTHING_CALLS
