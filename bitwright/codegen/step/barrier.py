"""What a decode step needs and TensorIR cannot say, as LLVM IR that is linked into its module: the spin barrier.

Every thread counts the barriers it has reached in a cache line of its own, and waits until all others have counted as
    far: two cores exchange one cache line each, 0.26 us on a Zen 5, where starting a parallel loop takes 4 us.
    ``words`` i64[threads * WORDS]; ``count`` grows by one from barrier to barrier and is never used again.
"""

from __future__ import annotations

WORDS = 16
"""i64 words per thread: two cache lines, because neighbouring lines are fetched in pairs."""

_SPINS_PER_YIELD = 64
"""Looks between two offers of the core to others, some microseconds. On a busy machine the thread that is waited for
has lost its core, and gets it back the sooner the less time is spent on waiting; where nobody wants the core, an offer
takes less than a microsecond."""

SYMBOL = "bitwright_barrier"

# Instruction that tells a core it is spinning, by the first part of the target triple.
_PAUSE = {
    "x86_64": ("call void @llvm.x86.sse2.pause()", "declare void @llvm.x86.sse2.pause()"),
    "aarch64": ("call void @llvm.aarch64.hint(i32 1)", "declare void @llvm.aarch64.hint(i32)"),
}

POINTER_SYMBOL = "bitwright_pointer"

_IR = """
define internal ptr @{pointer}(ptr %table, i64 %index) alwaysinline {{
  %at = getelementptr ptr, ptr %table, i64 %index
  %found = load ptr, ptr %at, align 8
  ret ptr %found
}}
define internal void @{symbol}(ptr %words, i64 %thread, i64 %threads, i64 %count) alwaysinline {{
entry:
  %own = mul i64 %thread, {words}
  %mine = getelementptr i64, ptr %words, i64 %own
  store atomic i64 %count, ptr %mine release, align 8
  br label %next
next:
  %other = phi i64 [ 0, %entry ], [ %after, %arrived ]
  %at = mul i64 %other, {words}
  %theirs = getelementptr i64, ptr %words, i64 %at
  br label %look
look:
  %spins = phi i64 [ 0, %next ], [ %more_spins, %spun ]
  %seen = load atomic i64, ptr %theirs acquire, align 8
  %behind = icmp slt i64 %seen, %count
  br i1 %behind, label %spin, label %arrived
spin:
  {pause}
  %more_spins = add i64 %spins, 1
  %low = and i64 %more_spins, {yield_mask}
  %patient = icmp ne i64 %low, 0
  br i1 %patient, label %spun, label %yield
yield:
  %ignored = call i32 @sched_yield()
  br label %spun
spun:
  br label %look
arrived:
  %after = add i64 %other, 1
  %more = icmp slt i64 %after, %threads
  br i1 %more, label %next, label %done
done:
  ret void
}}
declare i32 @sched_yield()
{declaration}
"""


def support_ir(triple: str) -> str:
    """LLVM IR of two functions.

    ``void bitwright_barrier(ptr words, i64 thread, i64 threads, i64 count)`` returns when all threads have come to it;
    ``ptr bitwright_pointer(ptr table, i64 index)`` reads a table of pointers.
    """
    pause, declaration = _PAUSE.get(triple.split("-")[0], ("", ""))
    return _IR.format(
        pointer=POINTER_SYMBOL,
        symbol=SYMBOL,
        words=WORDS,
        yield_mask=_SPINS_PER_YIELD - 1,
        pause=pause,
        declaration=declaration,
    )
