"""For the operator: who the operators are."""

from http import HTTPStatus

from fastapi import APIRouter
from pydantic import BaseModel

from server.api.examples import OPERATOR, answer
from server.api.problems import declare
from server.api.services import Admin, ServicesDep, Viewer
from server.registry import OperatorRecord, Role

router = APIRouter(tags=["operator: operators"])


class Operators(BaseModel):
    """All operators' accounts."""

    operators: tuple[OperatorRecord, ...]


class WhoAmI(BaseModel):
    """The caller."""

    name: str
    role: Role


@router.get(
    "/whoami",
    summary="Say who is calling",
    responses={
        200: answer("The operator whose token this is.", {"name": "ada", "role": "publisher"}),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN),
    },
)
def who_am_i(caller: Viewer) -> WhoAmI:
    """Say whose token came with the request, and what its role is."""
    return WhoAmI(name=caller.name, role=caller.role)


@router.get(
    "/operators",
    summary="List operators",
    responses={
        200: answer("Accounts by name, removed ones included.", {"operators": [OPERATOR]}),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN),
    },
)
def list_operators(services: ServicesDep, _: Admin) -> Operators:
    """List operators and their roles. Accounts are made in the console, or at the terminal: `lamella operators add`."""
    return Operators(operators=services.registry.operators())
