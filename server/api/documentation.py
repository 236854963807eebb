"""The API's documentation as one plain page, made from the OpenAPI document; it loads nothing from anywhere."""

import base64
import hashlib
import json
import re
from html import escape
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter()

_STYLE: Final = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid; } h3 { margin: 1.8rem 0 0.3rem; }
code, pre { font: 0.9em/1.4 ui-monospace, monospace; } pre { overflow-x: auto; padding: 0.6rem; border: 1px solid; }
summary { cursor: pointer; } table { border-collapse: collapse; } td { padding: 0.15rem 0.8rem 0.15rem 0; }
"""
_CODE: Final = re.compile(r"`([^`]+)`")
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()


@router.get("/docs", include_in_schema=False)
def show_documentation(request: Request) -> HTMLResponse:
    """Every operation with its parameters, examples and answers."""
    policy = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'"
    return HTMLResponse(render(request.app.openapi()), headers={"content-security-policy": policy})


def render(openapi: dict[str, Any]) -> str:
    """Turn an OpenAPI document into HTML."""
    groups: dict[str, list[str]] = {}
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(operation["tags"][0], []).append(_operation(method, path, operation))
    title, info = escape(openapi["info"]["title"]), openapi["info"]
    body = "".join(f"<h2>{escape(tag)}</h2>{''.join(parts)}" for tag, parts in groups.items())
    about = "".join(f"<p>{_prose(text)}</p>" for text in info["description"].split("\n\n"))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{title} {escape(info['version'])}</h1>{about}"
        f'<p>As OpenAPI: <a href="/v1/openapi.json"><code>/v1/openapi.json</code></a></p>{body}</html>'
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [
        f"<h3><code>{method.upper()} {escape(path)}</code></h3><p><strong>{escape(operation['summary'])}</strong></p>"
    ]
    parts.append(f"<p>{_prose(operation.get('description', ''))}</p>")
    rows = "".join(
        f"<tr><td><code>{escape(item['name'])}</code><td>{item['in']}<td>{_prose(item.get('description', ''))}"
        for item in operation.get("parameters", [])
    )
    parts.append(f"<table>{rows}</table>" if rows else "")
    if schema := operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema"):
        parts.append(_sample("Body", schema["examples"][0]))
    for status, answer in operation["responses"].items():
        example = next((content.get("example") for content in answer.get("content", {}).values()), None)
        parts.append(_sample(f"{status}: {answer['description']}", example))
    return "".join(parts)


def _prose(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _sample(title: str, example: Any) -> str:  # noqa: ANN401 - any JSON
    if example is None:
        return f"<p>{escape(title)}</p>"
    text = example if isinstance(example, str) else json.dumps(example, indent=2)
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
