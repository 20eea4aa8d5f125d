"""Speed of an artifact: rows like llama-bench's, each beside the read bandwidth that bounds it.

``pp512`` is a prompt of 512 tokens, ``tg64`` 64 tokens decoded one by one, each behind ``depth`` tokens in the cache.

The roofline is memory: a step cannot be faster than reading the bytes it touches once. Each repetition first reads a
buffer of as many bytes with the artifact's own ``read_bandwidth`` loop and the same threads, then runs the model, so
that both see the same machine. A fraction near 1 is at the limit of memory. Prompts are bound by arithmetic: they stand
beside the artifact's ``dot_peak`` loop, which only multiplies bytes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bitwright.errors import UsageError
from bitwright.runtime.artifact import Interface
from bitwright.runtime.breakdown import Breakdown
from bitwright.runtime.multiply_loop import MultiplyLoop
from bitwright.runtime.profile import profile_step
from bitwright.runtime.read_loop import ReadLoop

if TYPE_CHECKING:
    import numpy as np

    from bitwright.runtime.session import Session

_SEED = 0


@dataclass(frozen=True)
class BenchTest:
    """One row to measure: ``tokens`` of prompt (``pp``) or decoding (``tg``) behind ``depth`` cached tokens."""

    kind: Literal["pp", "tg"]
    tokens: int
    depth: int
    threads: int

    @property
    def name(self) -> str:
        return f"{self.kind}{self.tokens}"

    def bytes_per_token(self, interface: Interface) -> int:
        """Bytes of weights and cache that must be read for one token, on average over the test, everything once.

        Decoding at position p reads the weights and p + 1 cached tokens. A prompt reads the weights once per chunk, and
        after each chunk the cache up to there.
        """
        weights, cache = interface.weight_bytes_per_token, interface.cache_bytes_per_token
        if self.kind == "tg":
            return weights + cache * (2 * self.depth + self.tokens + 1) // 2
        chunk = interface.prefill_chunk
        ends = [self.depth + min(start + chunk, self.tokens) for start in range(0, self.tokens, chunk)]
        return (len(ends) * weights + cache * sum(ends)) // self.tokens

    def macs_per_token(self, interface: Interface) -> int:
        """Multiply-adds of linear layers for one token, on average over the test; 0 where they are not known.

        Of a prompt's chunk only the last token goes through what leads to logits alone, a decoded token always does.
        """
        chunks = self.tokens if self.kind == "tg" else -(-self.tokens // interface.prefill_chunk)
        return interface.macs_per_token + chunks * interface.macs_per_chunk // self.tokens


@dataclass(frozen=True)
class BenchRow:
    """A measured row.

    Attributes:
        samples: tokens per second of each repetition.
        bytes_per_token: see ``BenchTest.bytes_per_token``.
        bandwidth: bytes per second of the read loop, median over the repetitions.
        macs_per_token: see ``BenchTest.macs_per_token``.
        peak: multiply-adds per second of the loop that only multiplies, median over the repetitions; 0: not measured.
    """

    test: BenchTest
    samples: tuple[float, ...]
    bytes_per_token: int
    bandwidth: float
    macs_per_token: int = 0
    peak: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.samples)

    @property
    def deviation(self) -> float:
        """Sample standard deviation, 0 for one repetition."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0

    @property
    def bytes_per_second(self) -> float:
        return self.median * self.bytes_per_token

    @property
    def macs_per_second(self) -> float:
        return self.median * self.macs_per_token

    @property
    def roofline_fraction(self) -> float:
        return self.bytes_per_second / self.bandwidth

    @property
    def peak_fraction(self) -> float:
        """Multiply-adds of linear layers per second, as a fraction of the peak; 0 where it was not measured."""
        return self.macs_per_second / self.peak if self.peak else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The row of ``bench --json``."""
        return {
            "test": self.test.name,
            "depth": self.test.depth,
            "threads": self.test.threads,
            "tokens_per_second": {"median": self.median, "mean": self.mean, "sd": self.deviation},
            "samples": list(self.samples),
            "bytes_per_token": self.bytes_per_token,
            "bytes_per_second": self.bytes_per_second,
            "read_bandwidth": self.bandwidth,
            "roofline_fraction": self.roofline_fraction,
            "macs_per_token": self.macs_per_token,
            "macs_per_second": self.macs_per_second,
            "peak_macs_per_second": self.peak,
            "peak_fraction": self.peak_fraction,
        }


def plan_tests(
    prompts: Sequence[int], new: Sequence[int], depths: Sequence[int], threads: Sequence[int], context: int
) -> list[BenchTest]:
    """All rows: for every thread count and depth, the prompts, then decoding. Counts of 0 are left out.

    Raises:
        UsageError: nothing to measure, or a row longer than the context.
    """
    tests = [
        BenchTest(kind, tokens, depth, count)
        for count in threads
        for depth in depths
        for kind, sizes in _sizes(prompts, new)
        for tokens in sizes
        if tokens > 0
    ]
    if not tests or any(test.depth < 0 for test in tests):
        raise UsageError(
            "there is nothing to measure",
            limit="positive numbers of tokens at depths from 0",
            remedy="pass for example -p 512 -n 128 -d 0",
        )
    longest = max(tests, key=lambda test: test.depth + test.tokens)
    if longest.depth + longest.tokens > context:
        raise UsageError(
            f"{longest.name} at depth {longest.depth} needs {longest.depth + longest.tokens} tokens of context",
            limit=f"the context of this artifact is {context} tokens",
            remedy="measure less, or compile with a larger --context",
        )
    return tests


def _sizes(prompts: Sequence[int], new: Sequence[int]) -> tuple[tuple[Literal["pp", "tg"], Sequence[int]], ...]:
    return (("pp", prompts), ("tg", new))


def run_tests(
    session: Session,
    tests: Sequence[BenchTest],
    *,
    repetitions: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[BenchRow]:
    """Measure ``tests`` one after the other on a session that is otherwise idle, yielding each row when it is done.

    Every row runs once unmeasured, then ``repetitions`` times. ``progress`` gets (runs done, runs in all).

    Raises:
        UsageError: no repetitions. UnsupportedError: the artifact has no ``read_bandwidth``.
    """
    if repetitions < 1:
        raise UsageError(f"{repetitions} repetitions were asked for", limit="at least 1", remedy="pass -r 5")
    runs = len(tests) * (repetitions + 1)
    for number, test in enumerate(tests):

        def done(repetition: int, base: int = number * (repetitions + 1)) -> None:
            if progress is not None:
                progress(base + repetition + 1, runs)

        yield _measure(session, test, repetitions, done)


def _measure(session: Session, test: BenchTest, repetitions: int, done: Callable[[int], None]) -> BenchRow:
    import numpy as np

    module = session.module
    module.use_threads(test.threads)
    ids = np.random.default_rng(_SEED).integers(0, session.vocab, test.depth + test.tokens)
    session.reset()
    if test.depth:
        session.prefill(ids[: test.depth])
    size = test.bytes_per_token(session.manifest.interface)
    read = ReadLoop(module, size, test.threads)
    record = session.manifest.interface.peak
    multiply = MultiplyLoop(module, record, test.threads) if record is not None else None
    samples, bandwidths, peaks = [], [], []
    for repetition in range(repetitions + 1):
        bandwidths.append(read.bytes_per_second())
        peaks.append(multiply.macs_per_second() if multiply is not None else 0.0)
        seconds = _run(session, test, ids)
        samples.append(test.tokens / seconds)
        done(repetition)
    macs = test.macs_per_token(session.manifest.interface)
    return BenchRow(
        test, tuple(samples[1:]), size, statistics.median(bandwidths[1:]), macs, statistics.median(peaks[1:])
    )


def _run(session: Session, test: BenchTest, ids: np.ndarray) -> float:
    """Seconds of one repetition, from ``depth`` tokens in the cache and back to there."""
    new = ids[test.depth :].tolist()
    start = time.perf_counter()
    if test.kind == "pp":
        session.prefill(new)
    else:
        for number in new:
            session.advance(number)
    seconds = time.perf_counter() - start
    session.rewind(test.depth)
    return seconds


def profile_tests(session: Session, tests: Sequence[BenchTest], *, repetitions: int = 5) -> Iterator[Breakdown]:
    """Take apart one step of each kind of row: a decoded token, and the first chunk of the longest prompt."""
    longest: dict[tuple[str, int, int], BenchTest] = {}
    for test in tests:
        known = longest.get((test.kind, test.depth, test.threads), test)
        longest[test.kind, test.depth, test.threads] = max(known, test, key=lambda row: row.tokens)
    for test in longest.values():
        tokens = 1 if test.kind == "tg" else min(test.tokens, session.manifest.interface.prefill_chunk)
        session.module.use_threads(test.threads)
        step = BenchTest(test.kind, tokens, test.depth, test.threads)
        size = step.bytes_per_token(session.manifest.interface) * tokens
        read = ReadLoop(session.module, size, test.threads)
        yield profile_step(session, tokens, test.depth, read.bytes_per_second, repetitions=repetitions)
