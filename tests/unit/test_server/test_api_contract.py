"""Every operation, asked with what its description allows and what it does not: no answer that it does not say.

`LAMELLA_TEST_REQUESTS` sets how many requests each operation gets in each of the ways.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode, openapi
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from simulators.update_api import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from schemathesis.schemas import APIOperation

pytestmark = pytest.mark.slow
REQUESTS = int(os.environ.get("LAMELLA_TEST_REQUESTS", "8"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def wild_api(three_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API of which nobody needs anything afterwards, and that lets everybody ask as often as they like."""
    folder = tmp_path_factory.mktemp("wild") / "service"
    shutil.copytree(three_versions, folder)
    with Service(folder, device_requests_per_minute=0) as service:
        yield service


def ask(api: Service, case: Case, headers: dict[str, str], *, is_wrong: bool) -> None:
    """Send a request, and hold the answer against the description."""
    sent = case.as_transport_kwargs()
    sent.pop("cookies", None)
    if isinstance(sent.get("data"), bytes):
        sent["content"] = sent.pop("data")
    sent["headers"] = {
        name: value for name, value in {**sent.get("headers", {}), **headers}.items() if value.isprintable()
    }
    answer = api.client.request(**sent)
    # A wrong question is told so only to whoever may ask it.
    may_ask = answer.status_code not in {401, 403}
    case.validate_response(answer, checks=[*CHECKS, *([negative_data_rejection] if is_wrong and may_ask else [])])


def without_security(described: dict[str, Any]) -> dict[str, Any]:
    """The description without who may ask: each caller here shows always the same."""
    paths = {
        path: {method: {**one, "security": []} for method, one in methods.items()}
        for path, methods in described["paths"].items()
    }
    return described | {"paths": paths}


def problems_of(api: Service, operation: APIOperation, headers: dict[str, str], mode: GenerationMode) -> str | None:
    """What is wrong with the answers of an operation."""

    @settings(
        max_examples=REQUESTS,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def every_answer_is_described(case: Case) -> None:
        ask(api, case, headers, is_wrong=mode is GenerationMode.NEGATIVE)

    try:
        every_answer_is_described()
    except Unsatisfiable:
        return None  # nothing that could be wrong about it
    except AssertionError as error:
        return f"{operation.label}, {mode.value}: {error}"
    except BaseExceptionGroup as errors:
        return f"{operation.label}, {mode.value}: {errors.exceptions}"
    return None


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "not allowed"])
@pytest.mark.parametrize("caller", ["operator", "device", "nobody"])
def test_no_answer_that_is_not_described(wild_api: Service, caller: str, mode: GenerationMode) -> None:
    callers = {"operator": wild_api.operator, "device": wild_api.enrol(), "nobody": {}}
    schema = openapi.from_dict(without_security(wild_api.app.openapi()))
    found = [
        problem
        for result in schema.get_all_operations()
        if (problem := problems_of(wild_api, result.ok(), callers[caller], mode))
    ]
    assert found == [], "\n\n".join(found)
