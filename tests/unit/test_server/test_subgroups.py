"""Loss by group: what is taken together, what the intervals hold, and where it is shown."""

import json
import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulators.server_home import MODEL, Home

from privacy.attestation import PrivacyStatement, unseal
from privacy.report import AuditReport
from privacy.report.pages import to_html, to_markdown
from privacy.utility import MAX_GROUPS, GroupChange
from server.errors import GateRefusedError
from server.publishing import Gate, publish
from server.subgroups import FEWEST, SMALL, UNLABELLED, compare_groups


def by_name(changes: tuple[GroupChange, ...]) -> dict[str, GroupChange]:
    return {change.name: change for change in changes}


def test_a_group_that_lost_is_found_among_others_that_gained() -> None:
    draws = random.Random(3)
    labels = ["recipes"] * 200 + ["poems"] * 50 + [None] * 30 + ["rare"] * 4
    before = [draws.gauss(3.0, 0.5) for _ in labels]
    after = [
        loss + draws.gauss(0.2 if label == "poems" else -0.1, 0.1) for label, loss in zip(labels, before, strict=True)
    ]
    found = compare_groups(labels, before=before, after=after)
    assert [(one.name, one.examples) for one in found] == [
        ("recipes", 200),
        ("poems", 50),
        (UNLABELLED, 30),
        (SMALL, 4),
    ]
    assert [one.name for one in found if one.is_worse] == ["poems"]
    poems = by_name(found)["poems"]
    assert poems.low is not None
    assert poems.high is not None
    assert 0.1 < poems.low < poems.change < poems.high < 0.3
    assert by_name(found)[SMALL].low is None  # four examples say nothing


def test_without_labels_nothing_is_said_by_group() -> None:
    assert compare_groups([None, None], before=[1.0, 1.0], after=[2.0, 2.0]) == ()


def test_the_interval_covers_as_often_as_it_says() -> None:
    draws, covered = random.Random(1), 0
    for _ in range(400):
        after = [draws.gauss(0.5, 1.0) for _ in range(20)]
        (one,) = compare_groups(["a"] * 20, before=[0.0] * 20, after=after)
        assert one.low is not None
        assert one.high is not None
        covered += one.low <= 0.5 <= one.high
    assert 0.92 <= covered / 400 <= 0.98


def clustered(draws: random.Random, people: int) -> tuple[list[str], list[float]]:
    """Changes of loss around 0.5: what a person wrote is alike, and some write more than others."""
    authors, changes = [], []
    for person in range(people):
        own = draws.gauss(0.5, 1.0)
        for _ in range(draws.randrange(10, 30)):
            authors.append(str(person))
            changes.append(own + draws.gauss(0.0, 0.2))
    return authors, changes


def test_the_interval_counts_people_where_it_knows_them() -> None:
    draws, covered, naive = random.Random(2), 0, 0
    for _ in range(400):
        authors, after = clustered(draws, 10)
        labels, before = ["a"] * len(after), [0.0] * len(after)
        (one,) = compare_groups(labels, before=before, after=after, people=authors)
        (blind,) = compare_groups(labels, before=before, after=after)
        assert one.people == 10
        assert one.low is not None
        assert one.high is not None
        assert blind.low is not None
        assert blind.high is not None
        covered += one.low <= 0.5 <= one.high
        naive += blind.low <= 0.5 <= blind.high
    assert 0.90 <= covered / 400 <= 0.98
    assert naive / 400 < 0.6  # a hundred examples of ten people are not a hundred people


def test_of_too_few_people_nothing_is_said() -> None:
    (one,) = compare_groups(["a"] * 40, before=[0.0] * 40, after=[1.0, 1.1] * 20, people=list("abcd") * 10)
    assert (one.people, one.examples, one.low, one.high) == (4, 40, None, None)


@pytest.mark.parametrize(("bound", "is_passed"), [(None, True), (0.0, False), (0.09, False), (0.1, True), (0.3, True)])
def test_the_gate_holds_each_group_to_its_bound_beyond_chance(bound: float | None, *, is_passed: bool) -> None:
    gate = Gate(margin=0.1, worst_group_margin=bound)
    judged = gate.judge(candidate_loss=2.0, parent_loss=2.1, groups=GROUPS)
    assert judged.is_passed is is_passed
    assert ("rose by 0.3000 (95% interval +0.1000 to +0.5000, 20 examples)" in judged.reason) is not is_passed
    assert ("--worst-group-margin" in judged.reason) is not is_passed
    assert SMALL not in judged.reason  # three examples of it decide nothing


def test_a_candidate_that_harms_a_group_is_rejected_and_remembered(home: Home) -> None:
    home.base()
    home.publish(1, loss=None)
    home.candidate(1, parent=1)
    gate = Gate(margin=0.1, worst_group_margin=0.05).judge(candidate_loss=2.0, parent_loss=2.1, groups=GROUPS)
    folders = (home.registry, home.artifacts, home.metadata)
    with pytest.raises(GateRefusedError, match=r"is rejected: evaluation gate refused: .*group 'po"):
        publish(*folders, model=MODEL, version=2, gate=gate, work=home.settings.work_dir)
    kept = home.registry.version(MODEL, 2).gate
    assert kept == gate
    assert not kept.is_passed


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", None]) | st.text(min_size=1, max_size=3), st.floats(0, 9)),
        max_size=60,
    )
)
def test_every_example_is_in_one_group_and_the_groups_are_few(pairs: list[tuple[str | None, float]]) -> None:
    labels, after = [label for label, _ in pairs], [loss for _, loss in pairs]
    found = compare_groups(labels, before=[1.0] * len(pairs), after=after)
    if not any(labels):
        assert found == ()
        return
    assert sum(one.examples for one in found) == len(pairs)
    assert len(found) <= MAX_GROUPS
    assert len(by_name(found)) == len(found)
    assert all(one.examples >= FEWEST for one in found if one.name != SMALL)
    assert math.isclose(fmean(after), sum(one.after * one.examples for one in found) / len(pairs), abs_tol=1e-9)


GROUPS = (
    GroupChange(name="recipes", examples=40, before=2.6, after=2.4, low=-0.3, high=-0.1),
    GroupChange(name="po$em<b>s$", examples=20, before=2.6, after=2.9, low=0.1, high=0.5),
    GroupChange(name=SMALL, examples=3, before=2.6, after=2.7),
)


@pytest.fixture
def released(home: Home) -> Home:
    """v2, whose gate was measured by group."""
    home.base()
    home.publish(1, loss=None)
    home.candidate(1, parent=1)
    gate = Gate(margin=0.1).judge(candidate_loss=2.0, parent_loss=2.1, groups=GROUPS)
    folders = (home.registry, home.artifacts, home.metadata)
    publish(*folders, model=MODEL, version=2, gate=gate, work=home.settings.work_dir)
    return home


def test_gate_report_and_statement_tell_the_same_groups(released: Home) -> None:
    gate = released.registry.version(MODEL, 2).gate
    assert gate is not None
    assert gate.groups == GROUPS
    record = released.registry.statement(MODEL, 2)
    assert record is not None
    raw = released.artifacts.read_bytes(record.sha256)
    statement = PrivacyStatement.from_bytes(unseal(raw, released.metadata.releases_keys()))
    (told,) = statement.predicate.usefulness
    assert (told.before, told.after, told.groups) == (2.1, 2.0, GROUPS)
    report = AuditReport.from_json(released.artifacts.read_bytes(record.report_sha256))
    assert report.utility[0].groups == GROUPS
    assert released.registry.version(MODEL, 1).gate is None


def test_the_report_draws_the_groups_and_names_who_lost(released: Home) -> None:
    record = released.registry.statement(MODEL, 2)
    assert record is not None
    report = AuditReport.from_json(released.artifacts.read_bytes(record.report_sha256))
    html, markdown = to_html(report), to_markdown(report)
    assert "It rose, beyond chance, for: po$em" in markdown
    assert "too few to say" in markdown
    assert "po$em&lt;b&gt;s$" in html
    assert "<b>s$" not in html
    assert html.count("<img") == to_html(without_groups(report)).count("<img") + 1
    assert "no labels of groups" in to_markdown(without_groups(report))


def without_groups(report: AuditReport) -> AuditReport:
    (figure,) = report.utility
    return report.model_copy(update={"utility": (figure.model_copy(update={"groups": ()}),)})


def test_a_statement_of_before_has_no_such_figures_and_is_read(released: Home) -> None:
    record = released.registry.statement(MODEL, 2)
    assert record is not None
    raw = unseal(released.artifacts.read_bytes(record.sha256), released.metadata.releases_keys())
    old = json.loads(raw)
    del old["predicate"]["usefulness"]
    assert PrivacyStatement.from_bytes(json.dumps(old).encode()).predicate.usefulness == ()


def test_a_change_lies_in_its_own_interval_also_where_everybody_is_alike() -> None:
    """A figure outside by a rounding error cannot be drawn."""
    own = [(2.3, 2.6), (1.9, 2.15), (2.71, 2.9)]
    before, after = [old for old, _ in own] * 5, [new for _, new in own] * 5
    people = [str(number // 3) for number in range(15)]
    (group,) = compare_groups(["a"] * 15, before=before, after=after, people=people)
    assert group.low is not None
    assert group.high is not None
    assert group.low <= group.change <= group.high
    assert group.high - group.low < 1e-9
