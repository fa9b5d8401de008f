"""Gradio server with the page. No data leaves the machine, and the browser loads no external resources."""

from __future__ import annotations

import tempfile
from pathlib import Path

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipspect.config import DetectorConfig
from clipspect.demo import DEMO_IMAGES
from clipspect.errors import UsageError
from clipspect.server.engine import Engine
from clipspect.server.limits import Limits
from clipspect.ui.layout import build_page
from clipspect.ui.untracked import gr

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy: the browser fetches nothing from other hosts, whatever Gradio's page requests."""
FONT = ["system-ui", "sans-serif"]
STYLE = Path(__file__).with_name("page.css")


def serve_page(
    models: tuple[str, ...], limits: Limits, config: DetectorConfig, *, host: str, port: int
) -> None:
    """Serve the page until interrupted. Raises UsageError if the port is in use."""
    with tempfile.TemporaryDirectory(prefix="clipspect-references-") as folder:
        engine = Engine(models, references=Path(folder), config=config.replace(max_pixels=limits.pixels))
        launch(build_page(engine, limits), limits, host=host, port=port)


def launch(
    blocks: gr.Blocks, limits: Limits, *, host: str, port: int, prevent_thread_lock: bool = False
) -> None:
    """Start Gradio's server with the page. Raises UsageError if the port is in use."""
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            quiet=True,
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            max_file_size=f"{limits.image_mb:g}mb",
            allowed_paths=[str(DEMO_IMAGES)],
            footer_links=[],
            theme=gr.themes.Default(primary_hue="blue", font=FONT, font_mono=["ui-monospace", "monospace"]),
            css=STYLE.read_text(encoding="utf-8"),
            app_kwargs={"middleware": [Middleware(ContentPolicy)]},
            prevent_thread_lock=prevent_thread_lock,
        )
    except OSError as error:
        raise UsageError(f"cannot listen on {host}, port {port}; choose another with --port") from error


class ContentPolicy:
    """ASGI middleware that sends :data:`POLICY` with every response."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request and add the header to the response."""

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY.encode())
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await self.app(scope, receive, with_policy)
