"""Privacy statements and audit findings over REST: what an auditor gets without the server's terminal."""

import hashlib
import math
from pathlib import Path

import pytest
from simulators.server_home import MODEL
from simulators.update_api import Service

from privacy.__main__ import main
from privacy.audits import Finding, Verdict

FILES = ("statement.json", "report.json", "ledger.jsonl", "manifest.json")


def path_of(number: int, file: str = "") -> str:
    return f"/v1/operator/models/{MODEL}/versions/{number}/statement{file and '/' + file}"


def finding(**values: object) -> Finding:
    return Finding.model_validate(
        {
            "part": "noise",
            "question": "?",
            "verdict": Verdict.PASS,
            "reason": "r",
            "measured": 1.0,
            "unit": "u",
            "interval": (0.5, math.inf),
            "sample_size": 3,
            "sample": "s",
            "control": "c",
            "is_control_caught": True,
            "power": "p",
            "reading": "r",
            **values,
        }
    )


def test_a_statement_says_what_was_signed_and_that_it_holds(shared_api: Service) -> None:
    answer = shared_api.client.get(path_of(3), headers=shared_api.operator)
    told = answer.json()
    assert (told["holds"], told["problem"]) == (True, "")
    assert told["statement"]["predicate"]["release"]["tree_hash"] == shared_api.hash_of(3)
    assert told["keyid"] == shared_api.home.metadata.releases_keys()[0].keyid
    again = shared_api.client.get(path_of(3), headers={**shared_api.operator, "If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = shared_api.client.get(path_of(2), headers=shared_api.operator)
    assert other.headers["etag"] != answer.headers["etag"]


def test_its_files_verify_on_another_machine(
    shared_api: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = shared_api.client.get(path_of(3), headers=shared_api.operator).json()["files"]
    for file in FILES:
        answer = shared_api.client.get(path_of(3, file), headers=shared_api.operator)
        assert answer.status_code == 200, answer.text
        assert answer.headers["etag"] == f'"{hashes[file]}"'
        assert hashlib.sha256(answer.content).hexdigest() == hashes[file]
        (tmp_path / file).write_bytes(answer.content)
        known = {**shared_api.operator, "If-None-Match": answer.headers["etag"]}
        assert shared_api.client.get(path_of(3, file), headers=known).status_code == 304
        part = shared_api.client.get(path_of(3, file), headers={**shared_api.operator, "Range": "bytes=0-0"})
        # The ledger of a model that nobody trained is empty: it has no first byte.
        assert (part.status_code, part.content) == (206, answer.content[:1]) if answer.content else (416, b"")
    (key,) = (shared_api.home.folder / "offline-keys").glob("releases-*.pub")
    assert main(["verify", str(tmp_path), "--key", str(key)]) == 0, capsys.readouterr()


def test_a_statement_that_does_not_verify_is_not_shown_as_one(api: Service) -> None:
    record = api.home.registry.statement(MODEL, 3)
    assert record is not None
    place = api.home.artifacts.path(record.sha256)
    place.chmod(0o600)
    place.write_bytes(b"{}" + b" " * (record.length - 2))
    told = api.client.get(path_of(3), headers=api.operator).json()
    assert (told["holds"], told["statement"]) == (False, None)
    assert "lamella doctor" in told["problem"]


def test_what_has_no_statement_says_so(api: Service) -> None:
    candidate = api.home.candidate(9, parent=3)
    for path in (path_of(candidate.number), path_of(candidate.number, "report.json")):
        answer = api.client.get(path, headers=api.operator)
        assert (answer.status_code, answer.json()["detail"][:32]) == (404, "There is no privacy statement of")
    assert api.client.get(path_of(99), headers=api.operator).status_code == 404
    assert api.client.get(path_of(3, "..%2f..%2fkeys"), headers=api.operator).status_code in {404, 422}


def test_findings_of_a_run_and_their_worst_verdict(api: Service) -> None:
    registry = api.home.registry
    base = registry.version(MODEL, 1).manifest.base_hash
    registry.create_run("run-1", model=MODEL, recipe={}, base_version=1, base_hash=base, parent_version=3)
    path = "/v1/operator/runs/run-1/findings"
    empty = api.client.get(path, headers=api.operator)
    assert empty.json() == {"run_id": "run-1", "verdict": None, "findings": []}
    registry.record_findings("run-1", "canaries", [finding(), finding(part="clipping", verdict=Verdict.INCONCLUSIVE)])
    known = {**api.operator, "If-None-Match": empty.headers["etag"]}
    told = api.client.get(path, headers=known)
    assert told.status_code == 200
    assert told.json()["verdict"] == "inconclusive"
    assert {one["finding"]["part"] for one in told.json()["findings"]} == {"noise", "clipping"}
    assert told.json()["findings"][0]["finding"]["interval"] == [0.5, "Infinity"]
    known = {**api.operator, "If-None-Match": told.headers["etag"]}
    assert api.client.get(path, headers=known).status_code == 304
    assert api.client.get("/v1/operator/runs/none/findings", headers=api.operator).status_code == 404
