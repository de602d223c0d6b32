"""The API's reference for people, `/docs` and `/redoc`, with scripts from a package in place of a public CDN."""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from service.errors import UnknownPathError

_DOCUMENT = "openapi.json"  # paths are relative: they hold under a proxy's prefix, too
_FILES = "docs/static"
_ICON = f"{_FILES}/favicon.png"
# Both pages have a script within; Redoc makes a worker of a blob, and would fetch its maker's logo.
_POLICY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'unsafe-inline'; worker-src blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}
_KEPT = {"Cache-Control": "max-age=3600"}


def router(title: str) -> APIRouter:
    """Return the routes; the app's own must be turned off (`docs_url`, `redoc_url`)."""
    routes = APIRouter(include_in_schema=False)
    folder = Path(str(files("fastapi_offline"))) / "static"
    known = {path.name: path for path in folder.iterdir()}

    @routes.get("/docs")
    async def docs() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url=_DOCUMENT,
            title=title,
            swagger_js_url=f"{_FILES}/swagger-ui-bundle.js",
            swagger_css_url=f"{_FILES}/swagger-ui.css",
            swagger_favicon_url=_ICON,
            swagger_ui_parameters={"validatorUrl": "none"},  # or the document's address is sent to swagger.io
        )
        page.headers.update(_POLICY)
        return page

    @routes.get("/redoc")
    async def redoc() -> HTMLResponse:
        page = get_redoc_html(
            openapi_url=_DOCUMENT,
            title=title,
            redoc_js_url=f"{_FILES}/redoc.standalone.js",
            redoc_favicon_url=_ICON,
            with_google_fonts=False,
        )
        page.headers.update(_POLICY)
        return page

    @routes.get(f"/{_FILES}/{{name}}")
    async def static(name: str) -> FileResponse:
        if name not in known:
            raise UnknownPathError("no such file of the reference")
        return FileResponse(known[name], headers=_KEPT)

    return routes
