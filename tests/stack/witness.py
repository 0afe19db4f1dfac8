"""A witness: a small HTTP server that children call, which remembers who asked for what and how often."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PAGES = 10


@dataclass(frozen=True, slots=True)
class Call:
    """One request that was answered well.

    :param pid: the process that asked, where it said so
    """

    key: str
    pid: int
    token: str


class Witness:
    """Answers and remembers.

    ``GET /call/<key>?pid=..&token=..`` is answered with how often the key was asked for, ``GET /orders/<source>?page=..``
    as by the API of the example ``ingest``. ``on_call`` is called in the server's thread after a request was counted and before it is answered.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls: list[Call] = []
        self.refused: Counter[str] = Counter()
        self.refuse_first: Callable[[str], bool] = lambda _: False
        self.on_call: Callable[[Call], None] = lambda _: None
        witness = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                witness._serve(self)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where children find it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def counts(self, prefix: str = "") -> Counter[str]:
        """Return how often each key was asked for and answered."""
        with self._lock:
            return Counter(call.key for call in self.calls if call.key.startswith(prefix))

    def seen(self, prefix: str) -> list[Call]:
        """Return the calls under a prefix, in order."""
        with self._lock:
            return [call for call in self.calls if call.key.startswith(prefix)]

    def forget(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self.calls.clear()
            self.refused.clear()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        key = parts.path.removeprefix("/call/").strip("/")
        call = Call(
            f"{key}/{query['page']}" if "page" in query else key, int(query.get("pid", 0)), query.get("token", "")
        )
        with self._lock:
            refused = self.refuse_first(call.key) and not self.refused[call.key]
            if refused:
                self.refused[call.key] += 1
            else:
                self.calls.append(call)
        if not refused:
            self.on_call(call)
        body = {"error": "busy"} if refused else self._answer(call)
        try:
            handler.send_response(503 if refused else 200)
            handler.send_header("Content-Type", "application/json")
            handler.end_headers()
            handler.wfile.write(json.dumps(body).encode())
        except OSError:
            """Who asked was killed meanwhile."""

    def _answer(self, call: Call) -> dict[str, Any]:
        if not call.key.startswith("orders/"):
            return {"key": call.key, "count": self.counts()[call.key]}
        number = int(call.key.rpartition("/")[2])
        orders = [{"id": number * 10 + n, "day": f"2026-01-{n + 1:02}", "amount": f"{n}.50"} for n in range(3)]
        return {"pages": PAGES, "orders": orders}
