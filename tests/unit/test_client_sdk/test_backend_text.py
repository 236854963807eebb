"""Text is shown when it is certain, and nothing of a stop text is."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from client_sdk.backends import TextStream


def of_bytes(token_ids: Sequence[int]) -> str:
    """A tokenizer whose tokens are bytes."""
    return bytes(token_ids).decode("utf-8", "replace")


def run(text: str, stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    stream = TextStream(of_bytes, stop)
    pieces = []
    for byte in text.encode():
        pieces.append(stream.push(byte))
        if stream.is_stopped:
            return pieces, True
    pieces.append(stream.finish())
    return pieces, stream.is_stopped


def test_a_character_of_several_tokens_comes_whole() -> None:
    assert [piece for piece in run("aé\N{GRINNING FACE}b")[0] if piece] == ["a", "é", "\N{GRINNING FACE}", "b"]


def test_a_stop_text_ends_the_answer_and_its_beginning_is_held_back() -> None:
    pieces, is_stopped = run("one STtwo STOP three", ["STOP"])
    assert ("".join(pieces), is_stopped) == ("one STtwo ", True)
    assert all("STO" not in piece for piece in pieces)
    assert run("one STO", ["STOP"]) == (["o", "n", "e", " ", "", "", "", "STO"], False)


def test_the_first_of_several_stop_texts_counts() -> None:
    assert "".join(run("a\n\nb###", ["###", "\n\n"])[0]) == "a"


WHOLE = st.text(st.characters(exclude_characters="\N{REPLACEMENT CHARACTER}", codec="utf-8"))


@given(WHOLE, st.lists(WHOLE.filter(bool), max_size=3))
def test_pieces_make_the_text_before_the_first_stop(text: str, stop: list[str]) -> None:
    shown = "".join(run(text, stop)[0])
    if not any(s in text for s in stop):
        assert shown == text
    else:
        # A stop text that ends earlier is met first, even where another begins before it.
        assert text.startswith(shown)
        assert not any(s in shown for s in stop)


def test_a_long_answer_is_not_decoded_from_its_start() -> None:
    longest = 0

    def decode(token_ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(token_ids))
        return of_bytes(token_ids)

    stream = TextStream(decode)
    text = "The quick brown fox. " * 50
    assert "".join([*(stream.push(byte) for byte in text.encode()), stream.finish()]) == text
    assert longest < 100
