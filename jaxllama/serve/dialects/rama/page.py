"""Rama's page: shows the continuation of the prompt in the URL, token by token.

The prompt is never part of the HTML: the script reads it from the URL and writes it as text. The
page's policy allows its own script and this server only.
"""

import base64
import hashlib

from aiohttp import web

from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.model_choice import Uses
from jaxllama.service import GenerationService

SCRIPT = """
const prompt = new URLSearchParams(location.search).get("prompt") || "";
const source = new EventSource("/gen?prompt=" + encodeURIComponent(prompt));
const place = document.getElementById("text");
source.onmessage = (event) => {
  place.append(event.data.split(String.raw`\\n`).join("\\n"));
};
source.onerror = () => source.close();
"""
STYLE = "body { font: 16px/1.5 system-ui, sans-serif } pre { white-space: pre-wrap }"
HTML = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>Rama</title>"
    f"<style>{STYLE}</style><pre id=text></pre><script>{SCRIPT}</script></html>"
)


def digest(text: str) -> str:
    """Return the base64 SHA-256 of a script or style, for the Content-Security-Policy."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; script-src 'sha256-{digest(SCRIPT)}'; "
    f"style-src 'sha256-{digest(STYLE)}'; connect-src 'self'; base-uri 'none'; "
    f"form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}

ROOT = Endpoint("GET", "/", "Rama's page, with ?prompt=", answer=str, uses=Uses.NOTHING)
PAGE = Endpoint("GET", "/rama", "Rama's page, with ?prompt=", answer=str, uses=Uses.NOTHING)


async def show_page(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET / or /rama with Rama's HTML page."""
    del request, service
    return web.Response(text=HTML, content_type="text/html", headers=HEADERS)
