"""LiRA's likelihood ratios."""

from __future__ import annotations

import numpy as np
import pytest

from privacy.audits.lira import lira_scores
from privacy.errors import AuditError


def test_it_tells_members_apart_although_examples_differ_in_difficulty() -> None:
    random = np.random.default_rng(0)
    examples, shadows = 400, 16
    difficulty = 10 * random.random(examples)  # which hides membership from a threshold on the loss itself
    saw = np.array([random.permutation(examples) < examples // 2 for _ in range(shadows)])
    saw[0], saw[1] = True, False
    shadow = difficulty - 0.5 * saw + 0.2 * random.standard_normal((shadows, examples))
    member = random.random(examples) < 0.5
    losses = difficulty - 0.5 * member + 0.2 * random.standard_normal(examples)
    scores = lira_scores(losses, shadow, saw)
    assert ((scores > 0) == member).mean() > 0.85
    assert ((-losses > np.median(-losses)) == member).mean() < 0.6


def test_an_example_without_both_kinds_of_shadows_is_refused() -> None:
    saw = np.array([[True, False], [True, True]])
    with pytest.raises(AuditError, match="some shadow models"):
        lira_scores(np.zeros(2), np.zeros((2, 2)), saw)
    with pytest.raises(AuditError, match="do not go with"):
        lira_scores(np.zeros(3), np.zeros((2, 2)), saw)
