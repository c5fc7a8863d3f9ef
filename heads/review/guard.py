"""Who may speak to the server: this machine alone, and of its browsers only pages that the server itself sent.

Everything lies below a random token, which is new for each run. Other pages in the same browser can send requests to
any local port: what names another host (DNS rebinding), comes from another origin, or is a site's own request is
refused before it is read. Each answer forbids the page every connection but to this server, and forbids other pages to
embed it or to read it.
"""

import hmac
import secrets
from collections.abc import Callable, Iterable
from typing import Any

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; media-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = "connect-src 'none'; frame-ancestors 'none'"
"""For a page with a policy of its own inside, which says the rest."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


class Guard:
    """A WSGI application in front of another one, which sees only requests that may be answered.

    Args:
        app: The application; it sees paths without the token.

    Attributes:
        token: What every path begins with.
        port: Of the server, once it is known.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self.token = secrets.token_urlsafe(24)
        self.port = 0

    @property
    def address(self) -> str:
        """The page's address."""
        return f"http://127.0.0.1:{self.port}/{self.token}/"

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answers a request, or refuses it."""

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            given = {name.lower() for name, _ in headers}
            own = {**_HEADERS, "Content-Security-Policy": POLICY}
            return start_response(
                status, [*headers, *(one for one in own.items() if one[0].lower() not in given)], *rest
            )

        refused = self._refusal(environ)
        if refused is not None:
            status, why = refused
            start(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{why}\n".encode()]
        environ["PATH_INFO"] = environ["PATH_INFO"][len(self.token) + 1 :]
        return self._app(environ, start)

    def _refusal(self, environ: Environ) -> tuple[str, str] | None:
        own = {f"127.0.0.1:{self.port}", f"localhost:{self.port}"}
        host = environ.get("HTTP_HOST", "")
        if host not in own:
            return "403 Forbidden", "This server answers on this machine alone, by its own address."
        if environ.get("HTTP_ORIGIN", f"http://{host}") != f"http://{host}":
            return "403 Forbidden", "Another page may not ask this server."
        if environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin"):
            return "403 Forbidden", "Another page may not ask this server."
        # WSGI's paths are bytes in the guise of latin-1; a token is ASCII.
        start = environ.get("PATH_INFO", "").encode("latin-1", "replace")[: len(self.token) + 2]
        if not hmac.compare_digest(start, f"/{self.token}/".encode()):
            return (
                "403 Forbidden",
                "The address must be the one that `featurecache review` printed; each run has its own.",
            )
        return None
