"""hawkBit's words, and SWUpdate's archive, without a server."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from simulators.swu import members, self_signed

from delta_updates import Outcome
from server.ddi import ConfigData, Feedback, Links, root_document
from server.ddi.actions import RETRY_AFTER, choose_attempt, outcome_of
from server.ddi.swu import Signer, description, image, recipe_of
from server.errors import ConfigurationError
from server.registry import FailedAttempt

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def feedback(execution: str, finished: str, *, done: int = 0, of: int = 0) -> Feedback:
    result = {"finished": finished, "progress": {"cnt": done, "of": of}}
    return Feedback.model_validate({"status": {"execution": execution, "result": result}})


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (feedback("closed", "success"), Outcome.CONFIRMED),
        (feedback("closed", "none"), Outcome.CONFIRMED),  # hawkBit reads it so
        (feedback("closed", "failure"), Outcome.FAILED),
        (feedback("downloaded", "none"), Outcome.DOWNLOADED),
        (feedback("proceeding", "none", done=2, of=2), Outcome.APPLIED),
        (feedback("proceeding", "none", done=1, of=2), None),
        (feedback("proceeding", "none"), None),
        (feedback("download", "none"), None),
        (feedback("rejected", "none"), None),
        (feedback("scheduled", "none"), None),
    ],
)
def test_what_feedback_means(said: Feedback, meant: Outcome | None) -> None:
    assert outcome_of(said) == meant


def test_a_long_log_is_cut_to_its_end() -> None:
    status = {"execution": "closed", "result": {"finished": "failure"}, "details": ["x" * 4_000, "no space left"]}
    reason = Feedback.model_validate({"id": "", "status": status}).reason
    assert len(reason) == 500
    assert reason.endswith("; no space left")


@pytest.mark.parametrize(
    ("mode", "after"),
    [("merge", {"a": "1", "b": "3", "c": "4"}), ("replace", {"b": "3", "c": "4"}), ("remove", {"a": "1"})],
)
def test_attributes_are_merged_as_the_mode_says(mode: str, after: dict[str, str]) -> None:
    said = ConfigData.model_validate({"mode": mode, "data": {"b": "3", "c": "4"}})
    assert said.merged({"a": "1", "b": "2"}) == after


def test_a_version_is_a_number() -> None:
    assert ConfigData.model_validate({"data": {}}).installed is None
    installed = ConfigData.model_validate({"data": {"lamella.version": "12"}}).installed
    assert installed is not None
    assert installed.version == "12"
    with pytest.raises(ValidationError):
        _ = ConfigData.model_validate({"data": {"lamella.version": "0x1"}}).installed


@given(st.integers(min_value=1, max_value=10**9))
def test_the_pause_always_has_the_form_of_a_clock(seconds: int) -> None:
    document = root_document(Links(root="https://x"), poll_seconds=seconds, is_config_wanted=False)
    hours, minutes, rest = (int(part) for part in document["config"]["polling"]["sleep"].split(":"))
    assert hours < 24
    assert minutes < 60
    assert hours * 3600 + minutes * 60 + rest == min(seconds, 86_399)


@given(
    st.lists(st.tuples(st.sampled_from(["full", "from-1", "from-2"]), st.integers(min_value=0, max_value=72))),
)
def test_a_full_package_is_tried_once_a_day_and_a_delta_once(failed: list[tuple[str, int]]) -> None:
    attempts = sorted(
        (FailedAttempt(package_path=path, at=NOW - timedelta(hours=hours)) for path, hours in failed),
        key=lambda one: one.at,
        reverse=True,
    )
    may = choose_attempt("full", attempts, now=NOW)
    is_fresh = any(one.package_path == "full" and NOW - one.at < RETRY_AFTER for one in attempts)
    assert may == ("none" if is_fresh else "full" if attempts else "any")


# --- .swu


@given(content=st.binary(max_size=3_000))
def test_an_image_is_an_archive_whose_sums_hold(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("swu") / "package"
    file.write_bytes(content)
    made = b"".join(image(b"software = {};", signer=None, filename="p.lmpkg", file=file))
    assert len(made) % 512 == 0
    assert members(made) == {"sw-description": b"software = {};", "p.lmpkg": content}
    assert made == b"".join(image(b"software = {};", signer=None, filename="p.lmpkg", file=file))


def test_the_description_names_the_file_by_its_hash_and_where_it_goes() -> None:
    text = description(model="chat", version=3, filename="p.lmpkg", sha256="a" * 64, folder="/data/").decode()
    assert 'path = "/data/chat.lmpkg"' in text
    assert f'sha256 = "{"a" * 64}"' in text
    assert 'version = "3"' in text


def test_a_signature_is_one_that_openssl_verifies(tmp_path: Path) -> None:
    key, certificate = self_signed(tmp_path)
    signer = Signer.load(key, certificate)
    file = tmp_path / "package"
    file.write_bytes(b"package")
    made = members(b"".join(image(b"software = {};", signer=signer, filename="p", file=file)))
    assert list(made) == ["sw-description", "sw-description.sig", "p"]
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    verify = ["openssl", "cms", "-verify", "-inform", "DER", "-in", "sw-description.sig"]
    verify += ["-content", "sw-description", "-binary", "-CAfile", certificate.name, "-out", "/dev/null"]
    assert subprocess.run(verify, cwd=tmp_path, check=False, capture_output=True).returncode == 0
    (tmp_path / "sw-description").write_bytes(b"software = { };")
    assert subprocess.run(verify, cwd=tmp_path, check=False, capture_output=True).returncode != 0
    assert recipe_of(b"x", signer) != recipe_of(b"x", None)


def test_a_key_that_cannot_sign_is_told_to_the_operator(tmp_path: Path) -> None:
    key, certificate = self_signed(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = self_signed(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="is not the certificate of"):
        Signer.load(other, certificate)
    with pytest.raises(ConfigurationError, match="LAMELLA_DDI_SIGNING_KEY"):
        Signer.load(tmp_path / "missing", certificate)
    with pytest.raises(ConfigurationError, match="LAMELLA_DDI_SIGNING_KEY"):
        Signer.load(certificate, key)
