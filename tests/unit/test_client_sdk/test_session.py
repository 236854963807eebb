"""Conversations, in the runtime and at the terminal, with a runtime that answers by rule."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import pytest

from client_sdk import ChatSession, Device, DeviceError, Ending, EngineFacts, GenerationOptions, Piece
from client_sdk.terminal_chat import printable_lines, run_chat

if TYPE_CHECKING:
    from client_sdk.runtime import Runtime

FACTS = EngineFacts(
    backend="torch",
    precision="int8",
    cache_dtype="float32",
    threads=2,
    context=60,
    weight_bytes=1_000_000,
    adapters=("version",),
)


def ending(new_tokens: int = 3) -> Ending:
    return Ending(
        reason="stop", prompt_tokens=9, cached_tokens=4, new_tokens=new_tokens, first_token_s=0.1, decode_s=0.5
    )


class FakeRuntime:
    """Answers with the number of messages it was given; a token is a word."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, str]]] = []
        self.options: list[Mapping[str, object]] = []

    def load(self) -> EngineFacts:
        return FACTS

    def facts(self) -> EngineFacts:
        return FACTS

    def version(self) -> int:
        return 7

    def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int:
        return sum(len(message["content"].split()) for message in messages)

    def pieces(self, messages: Sequence[dict[str, str]], **options: object) -> Iterator[Piece]:
        self.asked.append(list(messages))
        self.options.append(options)
        if messages[-1]["content"] == "fail":
            raise DeviceError("The model cannot do this: no")
        yield Piece("answer ")
        yield Piece(f"to {len(messages)}")
        yield Piece("", ending=ending())


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


def session_on(runtime: FakeRuntime, system: str | None = None) -> ChatSession:
    return ChatSession(cast("Runtime", runtime), system=system)


def said(session: ChatSession, text: str, **options: int) -> str:
    return "".join(piece.text for piece in session.ask(text, **options))  # type: ignore[arg-type]


def test_turns_are_remembered(runtime: FakeRuntime) -> None:
    session = session_on(runtime, "be kind")
    assert said(session, "hello", max_new_tokens=5) == "answer to 2"
    assert said(session, "again", max_new_tokens=5) == "answer to 4"
    assert [message["role"] for message in session.messages] == ["system", "user", "assistant", "user", "assistant"]
    session.reset()
    assert session.messages == [{"role": "system", "content": "be kind"}]


def test_a_turn_that_fails_is_not_remembered(runtime: FakeRuntime) -> None:
    session = session_on(runtime)
    with pytest.raises(DeviceError):
        said(session, "fail", max_new_tokens=5)
    assert session.messages == []


def test_an_answer_that_is_closed_is_remembered_as_far_as_it_came(runtime: FakeRuntime) -> None:
    session = session_on(runtime)
    pieces = session.ask("hello", max_new_tokens=5)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert session.messages[-1] == {"role": "assistant", "content": "answer "}


def test_the_oldest_turns_go_when_the_context_is_full(runtime: FakeRuntime) -> None:
    session = session_on(runtime, "be kind")
    for _ in range(12):
        said(session, "five words in this turn", max_new_tokens=10)
        asked = runtime.asked[-1]
        assert runtime.count_tokens(asked) + 10 <= FACTS.context
        assert [asked[0]["role"], asked[1]["role"]] == ["system", "user"]
    assert session.dropped > 0
    said(session, "word " * 100, max_new_tokens=10)  # too long alone: the engine is left to say so
    assert len(runtime.asked[-1]) == 2


class Script:
    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)
        self.shown = ""

    def read(self) -> str | None:
        return self.lines.pop(0) if self.lines else None

    def write(self, text: str) -> None:
        self.shown += text


class FakeDevice:
    def __init__(self, runtime: FakeRuntime) -> None:
        self.runtime = runtime

    def load(self) -> EngineFacts:
        return FACTS

    def engine(self) -> EngineFacts:
        return FACTS

    def running_version(self) -> int:
        return 7

    def chat(self, *, system: str | None = None) -> ChatSession:
        return session_on(self.runtime, system)


def chat(runtime: FakeRuntime, *lines: str, options: GenerationOptions | None = None) -> str:
    script = Script(*lines)
    run_chat(cast("Device", FakeDevice(runtime)), options or {"max_new_tokens": 5}, system=None, terminal=script)
    return script.shown


def test_a_conversation_at_the_terminal(runtime: FakeRuntime) -> None:
    shown = chat(runtime, "hello", "", "/reset", "again", "/what", "/quit", "not read")
    assert shown.startswith("v7 with its adapter, torch int8 (1 MB, 2 threads)\n/reset forgets")
    assert "answer to 1\n  [v7, torch: 3 tokens, 4.0 tokens/s, 4 of 9 prompt tokens reused]\n" in shown
    assert "Forgotten." in shown
    assert shown.count("/reset forgets") == 2
    assert [len(asked) for asked in runtime.asked] == [1, 1]
    assert "without adapter" in chat(runtime, options={"adapter": None})


def test_an_error_does_not_end_the_conversation(runtime: FakeRuntime) -> None:
    shown = chat(runtime, "fail", "hello")
    assert "The model cannot do this: no\n" in shown
    assert "answer to 1" in shown


def test_ctrl_c_ends_the_answer_only(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(messages: Sequence[dict[str, str]], **options: object) -> Iterator[Piece]:
        yield Piece("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "pieces", interrupted)
    assert "half ...\n" in chat(runtime, "hello")


def test_a_terminal_obeys_nothing_that_a_model_says() -> None:
    assert printable_lines("a\x1b[2Jb\n c") == "a [2Jb\n c"
