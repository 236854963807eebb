"""Self-test of a version in test: does it load, compute finite numbers, and answer?"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from client_sdk.errors import DeviceDiskError, MissingExtraError, SelfTestError
from delta_updates import VersionManifest

if TYPE_CHECKING:
    from torch import Tensor

    from model import LoadedModel

PROMPT = "The quick brown fox"
NEW_TOKENS = 8
DIGEST_FACT = "self_test_digest"
"""Optional fact of a manifest: the sha256 that `answer_digest` gives for this version. Checked only where present,
because greedy answers may differ between processor families."""


def self_test(tree: Path, manifest: VersionManifest) -> None:
    """Load a version and make it answer.

    Logits of a fixed prompt must be finite, 8 greedy tokens must come without an exception, an adapter must change the
    logits, and the answer must have the digest that the manifest names, if it names one.

    Raises:
        SelfTestError: any of this does not hold, whatever the version raised.
        DeviceDiskError: the disk fails, which says nothing about the version either.
        MissingExtraError: this install cannot run models at all, which says nothing about the version.
    """
    try:
        import torch  # noqa: F401, PLC0415 - only paid for by those who run a model

        import model  # noqa: F401, PLC0415 - as above
    except ImportError as error:
        raise MissingExtraError(f"Running a model needs `pip install lamella[device]` ({error}).") from error
    try:
        _run(tree, manifest)
    except SelfTestError:
        raise
    except OSError as error:
        raise DeviceDiskError(
            f"v{manifest.version} cannot be read for its self-test: {error}. Check the disk."
        ) from error
    except Exception as error:
        raise SelfTestError(f"v{manifest.version} does not run: {type(error).__name__}: {error}") from error


def answer_digest(token_ids: list[int]) -> str:
    """The sha256 of the greedy answer's token ids, written in decimal and joined by commas."""
    return hashlib.sha256(",".join(map(str, token_ids)).encode()).hexdigest()


def _run(tree: Path, manifest: VersionManifest) -> None:
    import torch  # noqa: PLC0415 - as above

    from model import generate, load_version, remove_lora  # noqa: PLC0415

    loaded = load_version(tree)
    prompt = loaded.tokenizer.encode(PROMPT)
    logits = _logits(loaded, prompt)
    if not bool(torch.isfinite(logits).all()):
        raise SelfTestError(f"v{manifest.version} computes logits that are not finite.")
    answer = list(generate(loaded.model, prompt, max_new_tokens=NEW_TOKENS))
    expected = manifest.facts.get(DIGEST_FACT)
    if expected is not None and answer_digest(answer) != expected:
        raise SelfTestError(f"v{manifest.version} answers the self-test otherwise than its manifest says.")
    if loaded.has_adapter != (manifest.kind == "adapter"):
        raise SelfTestError(f"v{manifest.version} is signed as {manifest.kind!r}, but its adapter says otherwise.")
    if loaded.has_adapter:
        remove_lora(loaded.model)
        # An adapter without effect was not applied: the version would silently be its base.
        if torch.equal(_logits(loaded, prompt), logits):
            raise SelfTestError(f"The adapter of v{manifest.version} changes nothing.")


def _logits(loaded: "LoadedModel", prompt: list[int]) -> "Tensor":
    """Logits (1, T, vocab_size) of the prompt."""
    import torch  # noqa: PLC0415 - as above

    with torch.inference_mode():
        logits: Tensor = loaded.model(torch.tensor([prompt], dtype=torch.int64))
        return logits
