"""The chat page: plain HTML, CSS and JavaScript modules, served as they lie in this folder."""

import mimetypes
from importlib.resources import files

from fastapi import APIRouter, Response
from starlette.exceptions import HTTPException

SUFFIXES = (".css", ".html", ".js", ".svg")
# Only what this server sends may run, load or connect, so a model's output cannot become a script by any mistake.
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'"
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # the modules of two versions do not mix after an update
}


def page_router() -> APIRouter:
    """Return the routes of the chat page: GET / and the files under /page/."""
    router = APIRouter(include_in_schema=False)
    content = {f.name: f.read_bytes() for f in files(__name__).iterdir() if f.name.endswith(SUFFIXES)}

    @router.get("/")
    async def index() -> Response:
        return _file(content, "index.html")

    @router.get("/page/{name}")
    async def page_file(name: str) -> Response:
        return _file(content, name)

    return router


def _file(content: dict[str, bytes], name: str) -> Response:
    if name not in content:
        raise HTTPException(404, f"the page has no file {name!r}")
    media_type = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0]
    return Response(content[name], media_type=media_type, headers=_HEADERS)
