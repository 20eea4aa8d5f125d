"""Sizes as users write them: ``60MB`` is 60 * 10**6 bytes, ``60MiB`` 60 * 2**20."""

from __future__ import annotations

import re

from bitwright.errors import UsageError

_SIZE = re.compile(r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(?P<unit>|B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)")
UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def parse_size(text: str, option: str) -> int:
    """Bytes, rounded down.

    Raises:
        UsageError: ``text``, which ``option`` was given, is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(
            f"'{text[:40]}' is not a size",
            where=option,
            limit="a number of bytes, or one with kB, MB, GB, KiB, MiB or GiB",
            remedy=f"pass for example {option} 60MB",
        )
    whole, _, fraction = match["number"].partition(".")
    unit = UNITS[match["unit"]]
    return int(whole + fraction) * unit // int("1" + "0" * len(fraction))
