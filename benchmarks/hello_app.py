"""What `benchmarks/service.py` measures the service against: the least that FastAPI can answer."""

from fastapi import FastAPI

app = FastAPI(openapi_url=None)


@app.post("/hello")
async def hello() -> dict[str, str]:
    """Say hello."""
    return {"hello": "world"}
