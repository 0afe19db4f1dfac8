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


@dataclass(frozen=True, slots=True)
class Call:
    """One request that was answered well.

    :param pid: the process that asked
    """

    key: str
    pid: int
    token: str


class Witness:
    """Answers ``GET /call/<key>?pid=..&token=..`` with how often the key was answered, and remembers.

    :param on_call: called in the server's thread after a request was counted and before it is answered
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
                witness._answer(self)

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
        """Return how often each key was answered."""
        with self._lock:
            return Counter(call.key for call in self.calls if call.key.startswith(prefix))

    def pids(self, prefix: str = "") -> list[int]:
        """Return the processes that asked, in the order of their first call."""
        with self._lock:
            return list(dict.fromkeys(call.pid for call in self.calls if call.key.startswith(prefix)))

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        call = Call(parts.path.removeprefix("/call/"), int(query.get("pid", 0)), query.get("token", ""))
        with self._lock:
            refused = self.refuse_first(call.key) and not self.refused[call.key]
            if refused:
                self.refused[call.key] += 1
            else:
                self.calls.append(call)
            count = sum(known.key == call.key for known in self.calls)
        if not refused:
            self.on_call(call)
        body = json.dumps({"error": "busy"} if refused else {"key": call.key, "count": count}).encode()
        try:
            handler.send_response(503 if refused else 200)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)
        except OSError:
            """Who asked was killed meanwhile."""
