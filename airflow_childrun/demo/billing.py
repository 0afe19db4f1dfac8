"""The billing server of the demo: the outside world, and the witness that counts how often it was called."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was received whole.

    :param verb: ``create`` or ``send``
    :param about: whose invoice
    :param number: how many calls the server had received with this one
    """

    verb: str
    about: str
    token: str
    number: int


class BillingServer:
    """Makes invoices and sends them, and counts; use it as a context manager.

    It trusts nobody: a call is counted as repeated if it asks for what another one asked for, whatever its token.

    :param latency_s: how long each answer takes
    :param on_call: called in a thread of the server after a call was counted and before it is answered
    """

    def __init__(self, latency_s: float = 0.0, on_call: Callable[[Call], None] = lambda _: None) -> None:
        self._latency_s = latency_s
        self._lock = threading.Lock()
        self.calls: list[Call] = []
        self.on_call = on_call
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server._answer(self)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.port = int(self._http.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def repeated(self) -> int:
        """How many calls asked for what had been asked for before."""
        with self._lock:
            return len(self.calls) - len({(call.verb, call.about) for call in self.calls})

    def calls_about(self, about: str) -> list[Call]:
        """Return the calls about one customer's invoice, in order."""
        with self._lock:
            return [call for call in self.calls if call.about == about]

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers.get("Content-Length", 0))))
        parts = request.path.strip("/").split("/")
        create = parts == ["invoices"]
        about = str(body["customer"]) if create else parts[1].partition("-")[0]
        with self._lock:
            verb = "create" if create else "send"
            call = Call(verb, about, request.headers.get("Idempotency-Key", ""), len(self.calls) + 1)
            self.calls.append(call)
        time.sleep(self._latency_s)
        self.on_call(call)
        answer = json.dumps({"number": f"{about}-{body['month']}"} if create else {"sent": True}).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        request.wfile.write(answer)
