"""For the operator: the signed privacy statement of a version, and the files that prove it."""

import hashlib
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field

from privacy.attestation import PrivacyStatement
from server.api.delivery import FOREVER
from server.api.examples import answer
from server.api.operator_versions import ModelPath, NumberPath
from server.api.privacy_examples import STATEMENT_DETAIL, STATEMENT_FILE
from server.api.problems import declare
from server.api.services import Services, ServicesDep, Viewer
from server.api.streaming import answer_with_bytes
from server.api.tagged import answer_tagged
from server.errors import NotFoundError
from server.registry import StatementRecord
from server.signed_statement import signed_statement

router = APIRouter(prefix="/models/{model}/versions/{number}/statement", tags=["operator: privacy"])
_REFUSALS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY)
_SAME = {"description": "The caller has these very bytes already (If-None-Match)."}


class StatementFile(StrEnum):
    """The files that `python -m privacy verify FOLDER` reads, by their names there."""

    STATEMENT = "statement.json"
    REPORT = "report.json"
    LEDGER = "ledger.jsonl"
    MANIFEST = "manifest.json"


class StatementDetail(BaseModel):
    """What was signed about a version, and whether the service finds that it holds."""

    keyid: str = Field(description="The releases key that signed it.")
    holds: bool = Field(description="Whether the signature holds with the keys that the service's metadata name.")
    problem: str = Field(description="Why it must not be believed; empty where it holds.")
    statement: PrivacyStatement | None = Field(description="What it says; null where it does not hold.")
    files: dict[StatementFile, str] = Field(description="The sha256 of each file that proves it.")


@router.get(
    "",
    summary="Show a version's privacy statement",
    response_model=StatementDetail,
    responses={
        200: answer("What is promised, by whom, and the hashes of what proves it.", STATEMENT_DETAIL),
        304: _SAME,
        **declare(*_REFUSALS),
    },
)
def show_statement(
    services: ServicesDep, _: Viewer, request: Request, model: ModelPath, number: NumberPath
) -> Response:
    """Show the promise that was signed with a release, or that refused a candidate.

    The service checks the signature with the keys that it knows itself. Who does not trust it reads the files and
    checks them with a key from elsewhere: `python -m privacy verify`.
    """
    found = signed_statement(services.registry, services.artifacts, services.metadata, model, number)
    if found is None:
        raise _missing(services, model, number)
    detail = StatementDetail(
        keyid=found.record.keyid,
        holds=found.statement is not None,
        problem=found.problem,
        statement=found.statement,
        files={file: _sha256(services, found.record, file) for file in StatementFile},
    )
    return answer_tagged(detail, request)


@router.get(
    "/{file}",
    summary="Download a file of a privacy statement",
    response_class=Response,
    responses={
        200: answer("All of the file. The ETag is its sha256.", STATEMENT_FILE),
        206: answer("The range that was asked for.", "bytes"),
        304: _SAME,
        416: {"description": "The range begins after the end of the file; Content-Range has its length."},
        **declare(*_REFUSALS),
    },
)
def get_statement_file(
    services: ServicesDep,
    _: Viewer,
    request: Request,
    model: ModelPath,
    number: NumberPath,
    file: Annotated[
        StatementFile,
        Path(description="Which of them.", openapi_examples={"the envelope": {"value": "statement.json"}}),
    ],
) -> Response:
    """Hand out the signed envelope, or the report, the ledger or the manifest that it names, byte for byte.

    All four in one folder are what `python -m privacy verify FOLDER --key releases.pub` checks, anywhere; beside the
    ledgers of other models on its base, where the statement names any: `lamella privacy statement` writes those too.
    """
    record = services.registry.statement(model, number)
    if record is None:
        raise _missing(services, model, number)
    digest = _sha256(services, record, file)
    if file is StatementFile.MANIFEST:
        raw = services.registry.version(model, number).manifest.to_bytes()
        source, length = (lambda first, count: iter((raw[first : first + count],))), len(raw)
    else:
        source, length = (
            (lambda first, count: services.artifacts.chunks(digest, first=first, length=count)),
            services.artifacts.length(digest),
        )
    return answer_with_bytes(
        source,
        method=request.method,
        request_headers=request.headers,
        length=length,
        sha256=digest,
        media_type="application/x-ndjson" if file is StatementFile.LEDGER else "application/json",
        cache_control=f"private, {FOREVER}",
    )


def _sha256(services: Services, record: StatementRecord, file: StatementFile) -> str:
    if file is StatementFile.MANIFEST:
        return hashlib.sha256(services.registry.version(record.model, record.version).manifest.to_bytes()).hexdigest()
    return {
        StatementFile.STATEMENT: record.sha256,
        StatementFile.REPORT: record.report_sha256,
        StatementFile.LEDGER: record.ledger_sha256,
    }[file]


def _missing(services: Services, model: str, number: int) -> NotFoundError:
    services.registry.version(model, number)  # says so when there is no such version
    return NotFoundError(
        f"There is no privacy statement of v{number} of {model!r}: it is not published, or was before there were any."
    )
