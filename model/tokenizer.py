"""Text to token ids and back, and the chat template.

The two files are those of Hugging Face: tokenizer.json and tokenizer_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

import jinja2
import jinja2.sandbox
import tokenizers

from model.errors import CheckpointError, TokenizerError
from model.files import read_text, write_text

if TYPE_CHECKING:
    from pathlib import Path

_MAX_TOKENIZER_BYTES: Final = 64 * 1024 * 1024
_MAX_CONFIG_BYTES: Final = 4 * 1024 * 1024
_MAX_MESSAGES: Final = 1000
# `stop_tokens` is ours: models often end a turn with other tokens than the one of `eos_token`.
_KEPT_KEYS: Final = (
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "chat_template",
    "stop_tokens",
    "add_bos_token",
)


class Tokenizer:
    """A tokenizer with its special tokens and chat template.

    Attributes:
        bos_id: Begin-of-text token, None where the model has none.
        eos_id: End-of-text token.
        pad_id: Filler; never seen by the loss.
        stop_ids: Any of these ends an answer.
        has_chat_template: Whether `apply_chat` works.
    """

    def __init__(self, tokenizer_json: str, settings: Mapping[str, Any]) -> None:
        """Build from the text of tokenizer.json and the content of tokenizer_config.json.

        Raises:
            CheckpointError: Either is malformed, or names a token that the vocabulary lacks.
        """
        self._json = tokenizer_json
        self._settings = {key: settings[key] for key in _KEPT_KEYS if settings.get(key) is not None}
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises a bare Exception
            raise CheckpointError(f"tokenizer.json is malformed: {error}; fetch or import it again") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        eos = self._token_id("eos_token")
        if eos is None:
            raise CheckpointError("tokenizer_config.json names no eos_token; without one no answer would ever end")
        self.eos_id = eos
        self.bos_id = self._token_id("bos_token")
        pad = self._token_id("pad_token")
        self.pad_id = eos if pad is None else pad
        self.stop_ids = frozenset({eos, *(self._id_of(t) for t in self._settings.get("stop_tokens", ()))})
        self._special = sorted(
            (t.content for t in self._tokenizer.get_added_tokens_decoder().values() if t.special), key=len, reverse=True
        )
        self._template = _compile(self._settings.get("chat_template"))
        self.has_chat_template = self._template is not None

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read tokenizer.json and tokenizer_config.json.

        Raises:
            CheckpointError: A file is missing or malformed.
        """
        path = folder / "tokenizer_config.json"
        try:
            settings = json.loads(read_text(path, max_bytes=_MAX_CONFIG_BYTES))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not JSON: {error}") from error
        if not isinstance(settings, dict):
            raise CheckpointError(f"{path} is no JSON object")
        return cls(read_text(folder / "tokenizer.json", max_bytes=_MAX_TOKENIZER_BYTES), settings)

    def save(self, folder: Path) -> None:
        """Write both files atomically; the same tokenizer gives the same bytes.

        Raises:
            CheckpointError: This disk does not take them.
        """
        write_text(folder / "tokenizer.json", self._json)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self._settings}
        text = json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        write_text(folder / "tokenizer_config.json", text)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens written in it count as such, and none is added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def token(self, token_id: int) -> str:
        """A token as the vocabulary writes it, special ones too."""
        return self._tokenizer.id_to_token(token_id) or ""

    def apply_chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """A conversation in the form the model was trained on.

        Args:
            messages: `role` and `content` each. Special tokens inside a content are removed: a person's text must not
                be able to end its own turn and speak for another role.
            add_generation_prompt: Whether to end where the assistant's answer begins.

        Raises:
            TokenizerError: There is no template, a message is malformed, or the template refuses the conversation.
        """
        if self._template is None:
            raise TokenizerError("this model has no chat template; give a plain prompt instead of messages")
        if len(messages) > _MAX_MESSAGES:
            raise TokenizerError(f"{len(messages)} messages, at most {_MAX_MESSAGES} are rendered")
        try:
            clean = [{"role": m["role"], "content": self._without_special(m["content"])} for m in messages]
        except (KeyError, TypeError, AttributeError) as error:
            raise TokenizerError("every message needs a `role` and a text `content`") from error
        tokens = {key: _content(value) for key, value in self._settings.items() if key in {"bos_token", "eos_token"}}
        try:
            return self._template.render(messages=clean, add_generation_prompt=add_generation_prompt, **tokens)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise TokenizerError(f"the chat template refused the conversation: {error}") from error

    def _without_special(self, text: str) -> str:
        # Again until nothing is left: removing one token may join the halves of another.
        while any(token in text for token in self._special):
            for token in self._special:
                text = text.replace(token, "")
        return text

    def _token_id(self, key: str) -> int | None:
        value = self._settings.get(key)
        return None if value is None else self._id_of(value)

    def _id_of(self, token: object) -> int:
        token_id = self._tokenizer.token_to_id(_content(token))
        if token_id is None:
            raise CheckpointError(f"tokenizer_config.json names the token {token!r}, which tokenizer.json lacks")
        return token_id


def _content(token: object) -> str:
    """A token is written as text, or as an object with that text in `content`."""
    content = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(content, str):
        raise CheckpointError(f"tokenizer_config.json: {token!r} is no token")
    return content


def _compile(template: object) -> jinja2.Template | None:
    if template is None:
        return None
    if not isinstance(template, str):
        raise CheckpointError("tokenizer_config.json: chat_template must be one text")
    # Sandboxed: a template comes with a model and must not reach into this program.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise CheckpointError(f"tokenizer_config.json: chat_template is malformed: {error}") from error


def _refuse(message: str) -> NoReturn:
    """What templates call when a conversation does not fit them."""
    raise jinja2.TemplateError(message)
