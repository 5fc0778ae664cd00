"""The application: which path is whose."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from griffin_jax.serving import chat, completions, contexts, endpoints
from griffin_jax.serving.middleware import Around
from griffin_jax.serving.service import Service

STATIC = Path(__file__).parent / "static"
# The page loads nothing from elsewhere, and no other page may frame it.
_POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


def make_app(service: Service) -> Starlette:
    """Returns the application of a service, whose worker it starts and ends."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.worker.start(asyncio.get_running_loop())
        compiling = asyncio.create_task(service.make_ready())
        try:
            yield
        finally:
            compiling.cancel()
            await asyncio.to_thread(service.worker.close)
            service.contexts.close()

    middleware = [Middleware(Around, service=service)]
    if service.settings.allow_origins:
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=service.settings.allow_origins,
                allow_methods=["GET", "POST", "PUT", "DELETE"],
                allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
                expose_headers=["X-Request-Id", "Retry-After"],
            ),
        )
    app = Starlette(
        routes=[
            Route("/", page),
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{name:path}", endpoints.model),
            Route("/v1/completions", completions.create, methods=["POST"]),
            Route("/v1/chat/completions", chat.create, methods=["POST"]),
            Route("/v1/contexts", contexts.create, methods=["POST"]),
            Route("/v1/contexts", contexts.index, methods=["GET"]),
            Route("/v1/contexts/{name}", contexts.export, methods=["GET"]),
            Route("/v1/contexts/{name}", contexts.put, methods=["PUT"]),
            Route("/v1/contexts/{name}", contexts.delete, methods=["DELETE"]),
            Route("/tokenize", endpoints.tokenize, methods=["POST"]),
            Route("/detokenize", endpoints.detokenize, methods=["POST"]),
            Route("/tokenizer_info", endpoints.tokenizer_info),
            Route("/health", endpoints.health),
            Route("/metrics", endpoints.metrics),
            Route("/version", endpoints.version),
            Route("/openapi.json", endpoints.openapi),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _raise},
        lifespan=lifespan,
    )
    # The address that a redirection would name is not the one that clients of a proxy know.
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def page(request: Request) -> Response:
    """GET /."""
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return FileResponse(STATIC / "index.html", headers=headers)


async def _raise(request: Request, error: Exception) -> Response:
    """Leaves it to `Around` to tell of an error, in the one shape that clients know."""
    raise error
