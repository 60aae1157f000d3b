"""Serves the page on one address; by default only this machine can reach it."""

import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradio import Blocks

LOOPBACK = "127.0.0.1"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'self'; "
    "frame-ancestors 'none'; object-src 'none'"
)
"""The browser asks nobody but this server, and shows the page in nobody else's."""

App = Callable[
    [MutableMapping[str, Any], Callable[..., Awaitable[Any]], Callable[..., Awaitable[None]]], Awaitable[None]
]


class Guard:
    """Answers only to its own page, under the names that this may have, and sends the policy with every answer.

    A page elsewhere could otherwise reach a server on the loopback interface from within the same browser, directly or
    by a name of its own (DNS rebinding).

    Args:
        app: what answers.
        hosts: names that a request may use; empty takes any.
    """

    def __init__(self, app: App, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[..., Awaitable[Any]],
        send: Callable[..., Awaitable[None]],
    ) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        named = not self.hosts or host.rpartition(":")[0].strip("[]") in self.hosts
        if not named or (origin is not None and origin.partition("://")[2] != host):
            status, words = (403, b"another page asks") if named else (421, b"this server does not answer to that name")
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": words + b"\n"})
            return

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
                extra["referrer-policy"] = "no-referrer"
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in extra.items())]
            await send(message)

        await self.app(scope, receive, send_guarded)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(host: str, port: int) -> socket.socket:
    """A socket at the address, so that a port that is taken is known before anything is loaded; port 0 takes any.

    Raises:
        ValueError: if nothing can listen there.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port}: ports are 1 to 65535, and 0 takes any that is free")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise ValueError(
            f"nothing can listen at {host}, port {port} ({error.strerror or error}); give another --port, 0 for any "
            "that is free, or an address of this machine as --host"
        ) from error
    return made


def warning(host: str) -> str:
    """What it means to listen elsewhere than on the loopback interface; empty where nobody else can come."""
    if is_loopback(host):
        return ""
    return (
        f"--host {host}: whoever reaches this machine over the network can open the page, without a password and "
        "unencrypted: draw with its models, see the named runs and vote. Leave --host out to keep it to this machine."
    )


def page_modules() -> None:
    """Import what the page is made of, told to ask nobody anything.

    Raises:
        ValueError: if the extra is not installed; names it.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the page needs Gradio, which is not installed ({error}): pip install 'hidistill[view]'"
        ) from error


def serve(page: "Blocks", at: socket.socket, *, on_start: Callable[[], None]) -> None:
    """Serve a page until Ctrl-C."""
    import gradio
    import uvicorn
    from fastapi import FastAPI

    from hidistill.view.app import theme
    from hidistill.view.style import HEAD

    host = at.getsockname()[0]
    app = gradio.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        footer_links=[],
        allowed_paths=[],
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        head=HEAD,
    )
    hosts = frozenset({"127.0.0.1", "localhost", "::1"}) if is_loopback(host) else frozenset()
    guarded = Guard(app, hosts)
    config = uvicorn.Config(guarded, log_level="critical", server_header=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    on_start()
    with suppress(KeyboardInterrupt):  # raised again by uvicorn, after it has taken its leave
        server.run(sockets=[at])
