"""Write docs/rest.md: every REST operation with its examples, read from the app's OpenAPI document.

Run it as `python docs/make_rest.py`.
"""
# ruff: noqa: INP001 - a script, not a package

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Final

from server.api import create_app
from server.config import Settings
from server.signing import KeyFolder, Lifetimes, initialise

PAGE: Final = Path(__file__).with_name("rest.md")
_HEAD: Final = """\
<!-- Written by docs/make_rest.py. Do not edit. -->
# REST

{about}
A running service shows the same under `/docs`, and as OpenAPI under `/v1/openapi.json`.
Request bodies are bounded to 64 KiB.

An error, here of a device that comes with a used enrolment token:

```json
{problem}
```
"""
_WHO: Final = {"device": "a device, with its credential", "operator": "the operator, with the operator token"}
_FIRST_ERROR: Final = 400


def page() -> str:
    """The whole page."""
    openapi = document()
    groups: dict[str, list[str]] = {}
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append(_operation(f"{method.upper()} {path}", operation))
    problem = openapi["paths"]["/v1/devices"]["post"]["responses"]["410"]["content"]["application/problem+json"]
    head = _HEAD.format(about=openapi["info"]["description"], problem=_json(problem["example"]))
    return head + "".join(f"\n## {_heading(tag)}\n{''.join(parts)}" for tag, parts in groups.items())


def document() -> dict[str, Any]:
    """The OpenAPI document of the app, made in a folder of its own and not in anybody's home."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder) / "home", database_url=None)
        initialise(settings.home, KeyFolder(Path(folder) / "keys"), lifetimes=Lifetimes.of(settings), bins=2)
        app = create_app(settings)
        try:
            return app.openapi()
        finally:
            app.state.services.registry.close()


def _operation(name: str, operation: dict[str, Any]) -> str:
    schemes = [next(iter(entry)) for entry in operation.get("security", [])]
    who = _WHO[schemes[0]] if schemes else "anyone"
    parts = [f"\n### {operation['summary']}\n\n```\n{name}\n```\n\n{operation['description']}\n\nFor {who}.\n"]
    parts.append(_parameters(operation.get("parameters", [])))
    if body := operation.get("requestBody"):
        parts.append(_sample("**Body**", body["content"]["application/json"]["schema"]["examples"][0]))
    answers = sorted(operation["responses"].items())
    for status, answer in answers:
        if int(status) < _FIRST_ERROR:
            example = next((content.get("example") for content in answer.get("content", {}).values()), None)
            parts.append(_sample(f"**{status}** {answer['description']}", example))
    errors = "".join(f"| {status} | {a['description']} |\n" for status, a in answers if int(status) >= _FIRST_ERROR)
    parts.append(f"\n| error | meaning |\n|---|---|\n{errors}" if errors else "")
    return "".join(parts)


def _parameters(parameters: list[dict[str, Any]]) -> str:
    rows = "".join(
        f"| `{item['name']}` | {item['in']} | {item['description']} | {_example_of(item)} |\n" for item in parameters
    )
    return f"\n| parameter | in | meaning | example |\n|---|---|---|---|\n{rows}" if rows else ""


def _example_of(parameter: dict[str, Any]) -> str:
    named = parameter.get("examples")
    value = next(iter(named.values()))["value"] if named else parameter["schema"]["examples"][0]
    return f"`{value}`"


def _sample(title: str, example: object) -> str:
    if example is None:
        return f"\n{title}\n"
    is_text = isinstance(example, str)
    return f"\n{title}\n\n```{'' if is_text else 'json'}\n{example if is_text else _json(example)}\n```\n"


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _heading(tag: str) -> str:
    return tag[:1].upper() + tag[1:]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
