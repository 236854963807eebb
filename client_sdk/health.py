"""Self-test of a version in test: does it load, compute what it was signed with, answer, and do no harm here?

`self_test` does it in this process. The updater does it in another one (`client_sdk.self_test_process`), because what
is tested may crash, hang or take all memory.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from client_sdk.device_config import SelfTestLimits
from client_sdk.errors import ConfigurationError, DeviceDiskError, MissingExtraError, SelfTestError
from delta_updates import VersionManifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model import EncodedExample, LoadedModel

NEW_TOKENS = 8
_MAX_PROBE_EXAMPLES = 64
_MAX_PROBE_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthFacts:
    """What a self-test measured.

    Attributes:
        seconds: loading and all checks.
        tokens_per_second: of the greedy answer, on the torch back end.
        logit_error: largest difference from the logits that the version was signed with; None if it has none.
        probe_loss, serving_probe_loss: mean loss in nats per token of the device's own probe, of the new version and
            of the one that serves; None without a probe, or where nothing serves yet.
        peak_memory_bytes: largest resident set of the process that tested, if it was one of its own.
    """

    seconds: float = 0.0
    tokens_per_second: float = 0.0
    logit_error: float | None = None
    probe_loss: float | None = None
    serving_probe_loss: float | None = None
    peak_memory_bytes: int | None = None


def self_test(
    tree: Path,
    manifest: VersionManifest,
    *,
    limits: SelfTestLimits | None = None,
    serving: Path | None = None,
    probe: Path | None = None,
) -> HealthFacts:
    """Load a version and make it answer.

    The expected logits that it was signed with must come out within the tolerance, 8 greedy tokens without an exception
    and fast enough, an adapter must change the logits, and the device's own probe must not become worse by more than
    the margin.

    Args:
        tree: the version.
        manifest: what was signed about it.
        limits: what it must keep to.
        serving: the version that serves now, to compare the probe's loss with.
        probe: folder of JSON lines of examples; one that is not there is no probe.

    Raises:
        SelfTestError: any of this does not hold, whatever the version raised.
        DeviceDiskError: the disk fails, which says nothing about the version either.
        MissingExtraError: this install cannot run models at all, which says nothing about the version.
        ConfigurationError: the probe cannot be read, which is for this device's owner to mend.
    """
    try:
        import torch  # noqa: F401, PLC0415 - only paid for by those who run a model

        import model  # noqa: F401, PLC0415 - as above
    except ImportError as error:
        raise MissingExtraError(f"Running a model needs `pip install lamella[device]` ({error}).") from error
    try:
        return _run(tree, manifest, limits or SelfTestLimits(), serving, probe)
    except (SelfTestError, ConfigurationError):
        raise
    except OSError as error:
        raise DeviceDiskError(
            f"v{manifest.version} cannot be read for its self-test: {error}. Check the disk."
        ) from error
    except Exception as error:
        raise SelfTestError(f"v{manifest.version} does not run: {type(error).__name__}: {error}") from error


def _run(
    tree: Path, manifest: VersionManifest, limits: SelfTestLimits, serving: Path | None, probe: Path | None
) -> HealthFacts:
    from model import load_version  # noqa: PLC0415 - as above

    started = time.monotonic()
    # The version that serves goes first, so that the two are never in memory together.
    examples, before = _serving_loss(serving, probe)
    loaded = load_version(tree)
    if loaded.has_adapter != (manifest.kind == "adapter"):
        raise SelfTestError(f"v{manifest.version} is signed as {manifest.kind!r}, but its adapter says otherwise.")
    error = _logit_error(loaded, manifest, limits)
    rate = _answer_rate(loaded)
    if limits.min_tokens_per_second and rate < limits.min_tokens_per_second:
        raise SelfTestError(
            f"v{manifest.version} makes {rate:.1f} tokens a second; this device wants {limits.min_tokens_per_second:g}."
        )
    after = _mean_loss(loaded, examples)
    if after is not None and before is not None and not after <= before + limits.max_loss_increase:
        raise SelfTestError(
            f"v{manifest.version} is worse on this device's own probe: loss {after:.4f} after {before:.4f}, at most "
            f"{limits.max_loss_increase:g} more is allowed."
        )
    if loaded.has_adapter:
        _require_effect(loaded, manifest)
    return HealthFacts(
        seconds=time.monotonic() - started,
        tokens_per_second=rate,
        logit_error=error,
        probe_loss=after,
        serving_probe_loss=before,
    )


def _logit_error(loaded: "LoadedModel", manifest: VersionManifest, limits: SelfTestLimits) -> float | None:
    from model.probe import LOGITS_FACT, expected_logits, probe_logits  # noqa: PLC0415 - as above

    logits = probe_logits(loaded)
    if not bool(logits.isfinite().all()):
        raise SelfTestError(f"v{manifest.version} computes logits that are not finite.")
    fact = manifest.facts.get(LOGITS_FACT)
    if fact is None:
        return None
    expected = expected_logits(str(fact))
    if unknown := [token for token in expected if token >= len(logits)]:
        raise SelfTestError(f"v{manifest.version} has no token {unknown[0]}, but was signed with its logit.")
    error = max(abs(float(logits[token]) - value) for token, value in expected.items())
    if not error <= limits.logit_tolerance:
        raise SelfTestError(
            f"v{manifest.version} computes otherwise here than where it was signed: a logit is off by {error:.3g}, at "
            f"most {limits.logit_tolerance:g} is allowed."
        )
    return error


def _answer_rate(loaded: "LoadedModel") -> float:
    """Tokens a second of a short greedy answer, after its first token."""
    from model import generate  # noqa: PLC0415 - as above
    from model.probe import PROMPT  # noqa: PLC0415 - as above

    moments = []
    for _ in generate(loaded.model, loaded.tokenizer.encode(PROMPT), max_new_tokens=NEW_TOKENS):
        moments.append(time.monotonic())  # noqa: PERF401 - the moments are what matters
    if len(moments) < 2:  # noqa: PLR2004 - one token has no rate
        return math.inf
    return (len(moments) - 1) / max(moments[-1] - moments[0], 1e-9)


def _require_effect(loaded: "LoadedModel", manifest: VersionManifest) -> None:
    from model import remove_lora  # noqa: PLC0415 - as above
    from model.probe import probe_logits  # noqa: PLC0415 - as above

    with_adapter: Tensor = probe_logits(loaded)
    remove_lora(loaded.model)
    # An adapter without effect was not applied: the version would silently be its base.
    if bool((probe_logits(loaded) == with_adapter).all()):
        raise SelfTestError(f"The adapter of v{manifest.version} changes nothing.")


def _serving_loss(serving: Path | None, probe: Path | None) -> tuple["list[EncodedExample]", float | None]:
    """The probe's examples, and the loss on them of the version that serves; None where that is damaged."""
    if probe is None or not probe.is_dir() or serving is None:
        return [], None
    from model import DataError, JsonlSource, ModelError, encode_examples, load_version  # noqa: PLC0415 - as above

    try:
        source = JsonlSource(probe)
        examples = [example for user in source.users() for example in source.examples(user)][:_MAX_PROBE_EXAMPLES]
    except DataError as error:
        raise ConfigurationError(f"The self-test's probe: {error}.") from error
    try:
        loaded = load_version(serving)
        encoded = encode_examples(loaded.tokenizer, examples, max_length=_MAX_PROBE_TOKENS)
        loss = _mean_loss(loaded, encoded)
        # No number is above or below a loss that is none: nothing could ever replace such a version.
        return encoded, loss if loss is not None and math.isfinite(loss) else None
    except ModelError:
        return [], None


def _mean_loss(loaded: "LoadedModel", examples: "Sequence[EncodedExample]") -> float | None:
    from model import example_losses  # noqa: PLC0415 - as above

    return fmean(example_losses(loaded.model, examples)) if examples else None
