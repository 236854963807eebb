"""`lamella evaluate --groups`: held-out loss by group of text, of one version or of two."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Final

from server.errors import EvaluationError
from server.subgroups import NO_LABELS, compare_groups

if TYPE_CHECKING:
    from model import LoadedModel

_MAX_TOKENS: Final = 256
_MOST: Final = 1000


def group_losses(
    after: LoadedModel, before: LoadedModel | None, data: str, *, limit: int | None
) -> dict[str, dict[str, float | int | list[float]]]:
    """What there is to show, by group; of all of it first.

    Raises:
        EvaluationError: The data has no held-out text, or no label in it.
    """
    from model import encode_examples, example_losses, held_out_by_user, open_source

    by_user = held_out_by_user(open_source(data), limit=limit or _MOST)
    if not by_user:
        raise EvaluationError(f"The source {data!r} has no held-out text.")
    chosen = [example for _, example in by_user]
    labels = [example.group for example in chosen]
    if not any(labels):
        raise EvaluationError(NO_LABELS)

    def losses(loaded: LoadedModel) -> list[float]:
        encoded = encode_examples(loaded.tokenizer, chosen, max_length=_MAX_TOKENS)
        return example_losses(loaded.model, encoded)

    new = losses(after)
    old = new if before is None else losses(before)
    found: dict[str, dict[str, float | int | list[float]]] = {"(all)": {"examples": len(new), "loss": fmean(new)}}
    if before is not None:
        found["(all)"]["change"] = fmean(new) - fmean(old)
    for group in compare_groups(labels, before=old, after=new, people=[user for user, _ in by_user]):
        found[group.name] = {"examples": group.examples, "people": group.people or 0, "loss": group.after}
        if before is not None:
            found[group.name]["change"] = group.change
            if group.low is not None and group.high is not None:
                found[group.name]["change_95"] = [group.low, group.high]
    return found
