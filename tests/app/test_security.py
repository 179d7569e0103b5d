"""Nothing from a URL, from data or from a configuration is read as Markdown; headers confine pages to this server."""

import ast
import asyncio
from pathlib import Path

import pytest

from dtrak.app.elements import explain, plain
from dtrak.app.exports import no_formula
from dtrak.app.jobs import JobQueue
from dtrak.app.security import HEADERS, SecurityHeaders
from dtrak.utils.errors import DtrakError

ROOT = Path(__file__).resolve().parents[2]
MARKDOWN = {
    "markdown", "caption", "info", "warning", "success", "error", "write", "subheader", "header", "title", "button",
    "toggle", "checkbox", "expander", "metric", "link_button", "page_link", "popover", "toast", "download_button",
    "status", "selectbox", "slider", "radio", "segmented_control", "multiselect", "select_slider",
}  # fmt: skip
UNTRUSTED = {"title", "message", "hint", "caption", "label", "creator", "licence", "id", "credit", "description",
             "name", "stale", "text"}  # fmt: skip
CONSTANT = {"method", "choice", "METHODS", "CHOICES"}  # their attributes are declared in the code


def base(node):
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def unescaped(node):
    if isinstance(node, ast.Call) and base(node.func) in ("plain", "explain"):
        return
    if isinstance(node, ast.Attribute) and node.attr in UNTRUSTED and base(node) not in CONSTANT:
        yield ast.unparse(node)
        return
    for child in ast.iter_child_nodes(node):
        yield from unescaped(child)


def findings(source):
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in MARKDOWN:
            shown = call.args[:1] + [k.value for k in call.keywords if k.arg in ("help", "caption", "label")]
            for argument in shown:
                yield from ((call.lineno, found) for found in unescaped(argument))


@pytest.mark.parametrize("path", [*ROOT.glob("pages/*.py"), *ROOT.glob("dtrak/app/*.py")], ids=lambda p: p.name)
def test_what_pages_show_as_markdown_is_escaped(path):
    assert not list(findings(path.read_text()))


def test_the_lint_finds_what_it_should():
    assert list(findings("st.caption(f'{run.title}')")) == [(1, "run.title")]
    assert list(findings("st.button('Open', help=record.caption)")) == [(1, "record.caption")]
    assert not list(findings("st.caption(plain(run.title) + METHODS[name].title)"))


@pytest.mark.parametrize(
    "payload",
    [
        "![](http://127.0.0.9:9/a.png)",
        "[a](javascript:b)",
        "<img src=x>",
        "`a`",
        ":red[a]",
        "http://a.b",
        "www.a.b",
        "a@b.c",
    ],
)
def test_markdown_is_shown_as_text(payload):
    escaped = plain(payload)
    for sign in "[]()<>`:!":
        assert sign not in escaped.replace(f"\\{sign}", "")
    assert "://" not in escaped
    assert explain(DtrakError(payload, hint=payload)) == f"{escaped} {escaped}"


def test_every_response_carries_the_headers():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b""})

    async def keep(message):
        sent.append(message)

    asyncio.run(SecurityHeaders(app)({"type": "http"}, None, keep))
    assert sent[0]["headers"] == [(b"a", b"b"), *HEADERS]
    policy = dict(HEADERS)[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy
    assert "http" not in policy.replace("https", "")


@pytest.mark.parametrize(
    ("text", "safe"),
    [("=1+1", "'=1+1"), ("a\n=1+1", "a\n'=1+1"), ("＝1", "'＝1"), ("|cmd", "'|cmd"), ("@SUM", "'@SUM"),
     ("\t=1", "'\t=1"),
     ("plain", "plain"), ("a=b", "a=b"), ("", "")],
)  # fmt: skip
def test_spreadsheets_calculate_nothing(text, safe):
    assert no_formula(text) == safe


def test_a_cancelled_job_leaves_the_queue_at_once():
    import threading

    queue, go = JobQueue(), threading.Event()
    first = queue.submit("first", lambda job: go.wait(10))
    second = queue.submit("second", lambda job: 1 / 0)
    second.cancel()
    assert second.state == "cancelled"
    assert second not in queue.active()
    go.set()
    third = queue.submit("third", lambda job: 3)
    for _ in range(1000):
        if not third.active:
            break
        threading.Event().wait(0.01)
    assert (first.state, second.state, third.result) == ("done", "cancelled", 3)
