"""`GET /` and the files of the page. Event loop; the files are in memory."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from vinfer.server.answers.bodies import Welcome
from vinfer.server.http.browser import accepts_html
from vinfer.server.page import PageFile
from vinfer.server.services import Services


async def welcome(services: Services, request: HttpRequest) -> Response:
    """Say where to go from here.

    A browser gets the page, unless it is off.
    """
    if services.page and accepts_html(request.scope):
        return _answer(request, services.page, "index.html")
    body: Welcome = {
        "message": "vinfer serves OpenAI's API",
        "models": "/v1/models",
        "documentation": "/openapi.json",
    }
    return JSONResponse(body, headers={"Vary": "Accept"})


async def page_file(services: Services, request: HttpRequest) -> Response:
    """Return a file of the page.

    Raises:
        HTTPException: there is no such file.
    """
    return _answer(request, services.page, request.path_params["file"])


def _answer(request: HttpRequest, page: Mapping[str, PageFile], name: str) -> Response:
    file = page.get(name)
    if file is None:
        raise HTTPException(404)
    headers = {**file.headers, "Vary": "Accept"} if name == "index.html" else file.headers
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=dict(headers))
    return Response(file.content, headers=dict(headers))
