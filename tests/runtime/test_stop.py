"""Stop strings in streams: the cut text never depends on how the text is cut into pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bitwright.runtime.stop import StopStrings

TEXT = st.text("ab\n", max_size=30)


@given(text=TEXT, stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), data=st.data())
def test_pieces_give_what_the_whole_text_gives(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    bounds = [0, *cuts, len(text)]
    stream = StopStrings(stops)
    shown = "".join(stream.push(text[a:b]) for a, b in pairwise(bounds)) + stream.finish()
    places = [text.find(stop) for stop in stops if stop in text]
    assert (stream.hit is not None) == bool(places)
    if not places:
        assert shown == text
        return
    # A stream cannot see the future: it stops at the occurrence that is complete first.
    end = min(text.find(stop) + len(stop) for stop in stops if stop in text)
    assert shown in {text[: text.find(stop)] for stop in stops if stop in text}
    assert len(shown) <= end
    assert not any(stop in shown for stop in stops)


def test_text_that_cannot_become_a_stop_string_is_shown_at_once() -> None:
    stream = StopStrings(["END"])
    assert [stream.push(piece) for piece in ("abc", "dE", "N", "x", "EN")] == ["abc", "d", "", "ENx", ""]
    assert stream.finish() == "EN"


def test_nothing_comes_after_a_hit() -> None:
    stream = StopStrings("END")
    assert stream.push("one END two") == "one "
    assert (stream.push("three"), stream.finish(), stream.hit) == ("", "", "END")


def test_no_stop_strings_withhold_nothing() -> None:
    stream = StopStrings(())
    assert stream.push("abc") == "abc"
