import json
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import (
    ChitchatSource,
    DataError,
    DocstringSource,
    Example,
    JsonlSource,
    export_users,
    held_out_examples,
    open_source,
    split_by_time,
)
from model.data.filters import is_clean
from model.data.source import MOST_EXAMPLES


def example(moment: float, text: str = "x") -> Example:
    return Example(prompt="hi", completion=text, timestamp=moment)


class FakeSource:
    """Two users to train on, three held-out ones of different length."""

    def users(self) -> tuple[str, ...]:
        return ("anna", "ben")

    def held_out_users(self) -> tuple[str, ...]:
        return ("cleo", "dan", "eva")

    def examples(self, user: str) -> tuple[Example, ...]:
        count = {"anna": 3, "ben": 1, "cleo": 1, "dan": 3, "eva": 2}[user]
        return tuple(Example(prompt="né\n", completion=f"{user} {i}", timestamp=float(i)) for i in range(count))


@given(moments=st.lists(st.floats(0, 1e9), max_size=30), fraction=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_split_keeps_everything_and_holds_out_the_newest(moments: list[float], fraction: float) -> None:
    train, held_out = split_by_time([example(m) for m in moments], fraction)
    assert [e.timestamp for e in train + held_out] == sorted(moments)
    assert len(moments) < 2 or (train and held_out)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_split_refuses_other_fractions(fraction: float) -> None:
    with pytest.raises(DataError, match="held_out_fraction"):
        split_by_time([], fraction)


def test_held_out_examples_are_taken_in_turn() -> None:
    taken = [e.completion for e in held_out_examples(FakeSource(), limit=5)]
    assert taken == ["cleo 0", "dan 0", "eva 0", "dan 1", "eva 1"]
    assert len(held_out_examples(FakeSource(), limit=100)) == 6


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a nice day in Essex, on the grass, with spices and a peacock", True),
        ("write me: a.b+c@example.co.uk", False),
        ("what the FUCK", False),
        ("this is bullshit", False),
        ("oh shit.", False),
        ("shiitake mushrooms", True),
    ],
)
def test_filter(text: str, clean: bool) -> None:
    assert is_clean(text) is clean


def test_export_gives_each_user_a_file_of_its_own(tmp_path: Path) -> None:
    export_users(FakeSource(), tmp_path, users=2, held_out_users=2)
    source = open_source(f"jsonl:{tmp_path}")
    assert source.users() == ("anna", "ben")
    assert source.held_out_users() == ("cleo", "dan")
    for user in ("anna", "ben", "cleo", "dan"):
        assert source.examples(user) == FakeSource().examples(user)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")}
    export_users(FakeSource(), tmp_path, held_out_users=2)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")} == before


def test_export_leaves_out_who_wrote_too_little_and_says_when_too_few_are_left(tmp_path: Path) -> None:
    source = FakeSource()
    most = max(len(source.examples(user)) for user in source.users())
    enough = tuple(user for user in source.users() if len(source.examples(user)) >= most)
    export_users(source, tmp_path / "some", at_least=most)
    assert open_source(f"jsonl:{tmp_path / 'some'}").users() == enough
    with pytest.raises(DataError, match=f"only {len(enough)} of {len(enough) + 1} users"):
        export_users(source, tmp_path / "none", users=len(enough) + 1, at_least=most)
    assert not (tmp_path / "none").exists()


def test_a_user_whose_name_is_a_path_is_refused(tmp_path: Path) -> None:
    source = FakeSource()
    source.users = lambda: ("../anna",)  # type: ignore[method-assign]
    with pytest.raises(DataError, match="file name"):
        export_users(source, tmp_path / "x")


def write_lines(folder: Path, *lines: object, user: str = "me") -> JsonlSource:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / f"{user}.jsonl").write_text(text)
    return JsonlSource(folder)


def test_jsonl_takes_pairs_and_chats(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "user", "content": "d"}, {"role": "assistant", "content": "e"},
    ]  # fmt: skip
    source = write_lines(tmp_path, {"prompt": "p", "completion": "q"}, "", {"messages": chat})
    assert [(e.prompt, e.completion) for e in source.examples("me")] == [("p", "q"), ("a", "b"), ("d", "e")]


def test_jsonl_is_ordered_by_time_and_capped_to_the_newest(tmp_path: Path) -> None:
    write_lines(tmp_path, *({"prompt": "p", "completion": str(t), "timestamp": t} for t in (3, 1, 2)))
    assert [e.completion for e in JsonlSource(tmp_path).examples("me")] == ["1", "2", "3"]
    assert [e.completion for e in JsonlSource(tmp_path, max_examples=2).examples("me")] == ["2", "3"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"prompt": "my secret', "no JSON object"),
        ("[" * 100_000, "no JSON object"),
        ("[1]", "no JSON object"),
        ({"prompt": "my secret"}, "completion must be"),
        ({"prompt": "my secret", "completion": " "}, "completion must be"),
        ({"prompt": 3, "completion": "x"}, "prompt must be"),
        ({"messages": "my secret"}, "messages must be"),
        ({"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "x"}]}, "content must be"),
        ({"prompt": "my secret", "completion": "x", "timestamp": 1}, "every line"),
        ("x" * 1_100_000, "longer than"),
    ],
)
def test_a_bad_line_is_named_and_not_quoted(tmp_path: Path, bad: object, message: str) -> None:
    source = write_lines(tmp_path, {"prompt": "p", "completion": "q"}, bad)
    with pytest.raises(DataError, match=rf"me\.jsonl, line 2: .*{message}") as caught:
        source.examples("me")
    assert "secret" not in str(caught.value)


def test_a_label_of_a_group_is_kept_and_travels(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    source = write_lines(
        tmp_path,
        {"prompt": "p", "completion": "q", "group": "recipes"},
        {"messages": chat, "group": "poems"},
        {"prompt": "p", "completion": "r"},
    )
    assert [e.group for e in source.examples("me")] == ["recipes", "poems", None]
    export_users(source, tmp_path / "copy")
    assert JsonlSource(tmp_path / "copy").examples("me") == source.examples("me")
    assert "null" not in (tmp_path / "copy" / "me.jsonl").read_text()
    for label in ("", "x" * 65, "two\nlines", 3, ["a"]):
        bad = write_lines(tmp_path, {"prompt": "p", "completion": "q", "group": label}, user="bad")
        with pytest.raises(DataError, match="line 1: group must be a printable text"):
            bad.examples("bad")


def test_bad_timestamp(tmp_path: Path) -> None:
    source = write_lines(tmp_path, {"prompt": "p", "completion": "q", "timestamp": "yesterday"})
    with pytest.raises(DataError, match="line 1: timestamp must be a number"):
        source.examples("me")


@given(raw=st.binary(max_size=300))
def test_any_file_is_examples_or_a_data_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("jsonl")
    (folder / "me.jsonl").write_bytes(raw)
    with suppress(DataError):
        assert all(e.prompt and e.completion for e in JsonlSource(folder).examples("me"))


def test_unknown_users_and_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file \.\./x\.jsonl"):
        JsonlSource(tmp_path).examples("../x")
    with pytest.raises(DataError, match="no folder"):
        open_source(f"jsonl:{tmp_path / 'absent'}")
    for spec in ("jsonl:", "csv:x", ""):
        with pytest.raises(DataError, match="write 'chitchat'"):
            open_source(spec)


@pytest.mark.slow
def test_docstrings_need_nothing_but_python() -> None:
    assert "antigravity" not in sys.modules
    source = DocstringSource()
    assert len(source.users()) > 20
    assert "json" in source.held_out_users()
    assert set(source.users()).isdisjoint(source.held_out_users())
    examples = source.examples("json")
    assert any(e.prompt.startswith("def dumps(") and e.completion.startswith("Serialize") for e in examples)
    assert [e.timestamp for e in examples] == sorted(e.timestamp for e in examples)
    assert "antigravity" not in sys.modules
    assert source.users()[0] < source.users()[-1]
    with pytest.raises(DataError, match="no module"):
        source.examples("numpy")


@pytest.fixture(scope="module")
def chitchat() -> ChitchatSource:
    return ChitchatSource()


@pytest.mark.slow
def test_chitchat_users_are_those_with_a_hundred_messages(chitchat: ChitchatSource) -> None:
    assert len(chitchat.users()) == 263
    assert len(chitchat.held_out_users()) > 400
    assert set(chitchat.users()).isdisjoint(chitchat.held_out_users())


@pytest.mark.slow
def test_chitchat_replies_are_ordered_capped_and_clean(chitchat: ChitchatSource) -> None:
    sizes = Counter()
    for user in chitchat.users():
        examples = chitchat.examples(user)
        sizes[len(examples)] += 1
        assert all(e.prompt.strip() and e.completion.strip() for e in examples)
        assert [e.timestamp for e in examples] == sorted(e.timestamp for e in examples)
    assert max(sizes) == MOST_EXAMPLES
    assert min(sizes) > 0
    texts = [e.completion for user in chitchat.users() for e in chitchat.examples(user)]
    assert all(is_clean(text) for text in texts)


def test_no_word_of_a_held_out_user_is_seen_in_training(chitchat: ChitchatSource) -> None:
    """Not even as a prompt: the same reply at the same moment never occurs among what the fleet reads or writes."""
    fleet = {e.prompt for user in chitchat.users() for e in ChitchatSource.examples(chitchat, user)}
    held_out = [e.completion for e in held_out_examples(chitchat, limit=10_000) if len(e.completion) > 60]
    assert len(held_out) > 500
    assert fleet.isdisjoint(held_out)


def test_a_missing_chitchat_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install chitchat-dataset"):
        ChitchatSource().users()
