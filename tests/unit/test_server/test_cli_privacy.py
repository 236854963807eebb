"""`lamella privacy epsilon` and `plan`: figures for people and for programs, and wishes that cannot be met."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from privacy.accountant import epsilon_of_steps
from privacy.user_budget import UserPlan, epsilon_by_round
from server.cli.main import app
from server.errors import ConfigurationError

PLAN = ("plan", "--rounds", "6", "--examples", "200")


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["privacy", *arguments], env={"COLUMNS": "200"})
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_epsilon_by_three_accountants() -> None:
    asked = ("epsilon", "--sampling-probability", "0.01", "--noise-multiplier", "1", "--steps", "500")
    found = json.loads(run(*asked, "--target-delta", "1e-5", "--json"))
    assert found["pld"] == pytest.approx(1.326, abs=2e-3)
    assert found["rdp"] == pytest.approx(1.653, abs=1e-2)
    assert found["prv"] == pytest.approx(1.336, abs=1e-2)
    assert found["agree"] is True
    assert "ε ≤ 1.3265" in run(*asked)


def test_the_noise_for_a_budget() -> None:
    found = json.loads(run(*PLAN, "--target-epsilon", "4", "--json"))
    assert found["fits"] is True
    assert found["alternatives"] is None
    assert 3.9 < found["epsilon"] <= 4
    assert len(found["epsilon_after"]) == 6
    assert "within the budget of 4" in run(*PLAN, "--target-epsilon", "4")


SHARES = ("shares", "--cohort", "20", "--participations", "5", "--colluding", "0.05")


def test_noise_that_devices_make_in_shares() -> None:
    found = json.loads(run(*SHARES, "--target-epsilon", "4", "--json"))
    assert 3.98 < found["epsilon"] <= 4
    assert 0.9 < found["epsilon_of_gaussian"] / found["epsilon"] < 1
    assert (found["shares"]["counted"], found["fewest"]) == (15, 16)
    assert found["share_variance"] == pytest.approx((found["noise_multiplier"] * found["shares"]["levels"]) ** 2 / 15)
    again = run(*SHARES, "--noise-multiplier", str(found["noise_multiplier"]))
    assert f"ε ≤ {found['epsilon']:.4f}" in again
    assert "fewer than 16 stays masked" in " ".join(again.split())
    for wrong in ((), ("--target-epsilon", "4", "--noise-multiplier", "1")):
        with pytest.raises(ConfigurationError, match="one of the two"):
            run(*SHARES, *wrong)
    with pytest.raises(ConfigurationError, match="larger cohort"):
        run("shares", "--cohort", "3", "--participations", "1", "--noise-multiplier", "1", "--colluding", "0.4")


def test_a_plan_that_does_not_fit_says_what_to_change(tmp_path: Path) -> None:
    asked = (*PLAN, "--target-epsilon", "2", "--noise-multiplier", "0.9")
    said = run(*asked, "--picture", str(tmp_path / "epsilon.svg"))
    assert "over the budget of 2" in said
    assert "more noise: " in said
    assert "fewer rounds: " in said
    assert (tmp_path / "epsilon.svg").read_text().startswith("<?xml")
    found = json.loads(run(*asked, "--json"))
    assert found["fits"] is False
    assert found["alternatives"]["rounds"] < 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--target-epsilon, --noise-multiplier or both"),
        (("--target-epsilon", "0"), "There is no such plan"),
        (("--noise-multiplier", "1", "--target-delta", "2"), "There is no such plan"),
        (("--noise-multiplier", "1", "--picture", "plan.pdf"), "ends in"),
        (("--noise-multiplier", "0", "--picture", "plan.svg"), "nothing to draw"),
    ],
)
def test_what_cannot_be_planned_is_told(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        run(*PLAN, *arguments)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="lies in"):
        run("epsilon", "--sampling-probability", "2", "--noise-multiplier", "1", "--steps", "1")


USERS = ("plan-users", "--rounds", "40", "--cohort", "100")


def test_a_plan_for_users_finds_the_least_noise() -> None:
    asked = (*USERS, "--participations", "5", "--min-separation", "4")
    found = json.loads(run(*asked, "--target-epsilon", "4", "--json"))
    assert found["fits"]
    assert 3.99 < found["epsilon"] <= 4.0
    assert found["noise_in_mean"] == found["noise_multiplier"] / 100
    # A device is drawn every fourth round at most, and five times in all.
    after = found["epsilon_after"]
    assert len(after) == 40
    assert after[0] == after[3] < after[4]
    assert after[16] == after[-1]
    plan = UserPlan(rounds=40, sampling_probability=None, max_participations=5, min_separation=4)
    less = found["noise_multiplier"] - 0.001
    assert epsilon_by_round(plan, noise_multiplier=less, target_delta=1e-6)[-1] > 4.0


def test_a_plan_for_users_tells_the_single_changes_that_make_it_fit() -> None:
    asked = (*USERS, "--participations", "9", "--noise-multiplier", "2", "--target-epsilon", "4")
    found = json.loads(run(*asked, "--json"))
    assert not found["fits"]
    changes = found["alternatives"]
    for name, value in (("--participations", changes["participations"]), ("--rounds", changes["rounds"])):
        again = [*asked, "--json"]
        again[again.index(name) + 1] = str(value)
        assert json.loads(run(*again))["fits"]
        again[again.index(name) + 1] = str(value + 1)
        assert not json.loads(run(*again))["fits"]
    assert "fewer contributions of a device" in run(*asked)


def test_a_plan_for_users_with_sampling_is_the_accountants(tmp_path: Path) -> None:
    picture = tmp_path / "users.svg"
    asked = (*USERS, "--sampling-probability", "0.05", "--noise-multiplier", "1")
    found = json.loads(run(*asked, "--json", "--picture", str(picture)))
    expected = epsilon_of_steps(noise_multiplier=1.0, sampling_probability=0.05, steps=40, target_delta=1e-6)
    assert found["epsilon"] == expected
    assert "drawn with probability 0.05" in run(*asked)
    assert picture.read_text(encoding="utf-8").startswith("<?xml")


def test_a_plan_for_users_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="target-epsilon"):
        run(*USERS)
    with pytest.raises(ConfigurationError, match="no such plan"):
        run(*USERS, "--target-epsilon", "0")
