import tomllib
from pathlib import Path

import pytest

from server.errors import RecipeError
from server.federation.recipe import Recipe


def test_the_projects_flower_config_is_the_recipes_defaults():
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    config = project["tool"]["flwr"]["app"]["config"]
    assert Recipe.from_run_config(config) == Recipe(model=config["model"])
    assert set(config) == set(Recipe(model="chat").to_run_config())


def test_every_key_is_documented():
    text = Path("docs/federated.md").read_text(encoding="utf-8")
    for name, field in Recipe.model_fields.items():
        assert f"`{name.replace('_', '-')}`" in text
        assert field.description


SECURE = {"secure-aggregation": True, "quorum": 3}
SHARES = {"privacy-mode": "both", "secure-aggregation": True, "cohort": 10, "quorum": 3}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            SHARES | {"cohort-sampling": "poisson", "sampling-probability": 0.1},
            "how many were drawn shows in the noise",
        ),
        (SHARES | {"noise-bands": 2, "min-separation": 2}, "noise-bands 1"),
        (SHARES | {"clipping-quantile": 0.5}, "clipping-quantile 0"),
        (SHARES | {"secure-dropouts": 0.45, "secure-colluding": 0.45}, "fewer than 2 of 10 shares"),
        (SHARES | {"aggregation": "median"}, "aggregation mean"),
        (SHARES | {"quorum": 2}, "quorum of 3"),
        (SECURE | {"cohort": 3}, "raise cohort to 4 or more, or lower secure-dropouts"),
        (SECURE | {"cohort": 4, "secure-colluding": 0.3}, r"raise cohort to \d+ or more"),
        (SECURE | {"cohort": 50, "secure-dropouts": 0.49, "secure-colluding": 0.49}, "server: lower secure-dropouts"),
        (SECURE | {"cohort": 10_001}, "lower cohort from 10001"),
        ({"quorum": 5, "cohort": 4}, "quorum"),
        ({"targets": "q_proj,nonsense"}, "targets"),
        ({"target-epsilon": 0}, "target-epsilon"),
        ({"local-stepz": 3}, "local-stepz"),
        ({"strategy": "fedsgd"}, "strategy"),
        ({"model": "../x"}, "model"),
    ],
)
def test_a_wrong_key_or_value_is_named(change, said):
    with pytest.raises(RecipeError, match=said):
        Recipe.from_run_config({"model": "chat"} | change)


def test_under_a_secure_sum_the_users_bound_is_the_one_that_counts():
    recipe = Recipe.from_run_config({"model": "chat", "user-clipping-norm": 0.3} | SHARES)
    assert recipe.secure_norm == 0.3
    assert recipe.model_copy(update={"privacy_mode": "example"}).secure_norm == recipe.secure_clipping_norm


def test_targets_are_put_into_the_models_order():
    assert Recipe(model="chat", targets="v_proj, q_proj").target_names == ("q_proj", "v_proj")


def test_the_budget_lasts_for_the_rounds_of_the_run_unless_said_otherwise():
    assert Recipe(model="chat", num_server_rounds=7).participations == 7
    assert Recipe(model="chat", num_server_rounds=2, budget_rounds=5).participations == 5
