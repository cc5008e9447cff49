"""A server on loopback that stands before a real MLflow server and refuses, hangs, fails or dawdles on request."""

from __future__ import annotations

import http.client
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FaultyServer:
    """Passes requests on, but for what `mode` says.

    Attributes:
        mode: 'pass', 'hang' (no answer until the mode changes), '500', 'slow' (0.2 s for each request), or
            'reject:NAME' (400 for a batch with the metric NAME).
        url: of this server.
    """

    def __init__(self, backend_port: int, mode: str = "pass") -> None:
        self.mode = mode
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                while outer.mode == "hang":
                    time.sleep(0.05)
                if outer.mode == "slow":
                    time.sleep(0.2)
                if outer.mode == "500":
                    self._say(500, b"out of order", "text/plain")
                elif outer.mode.startswith("reject:") and f'"{outer.mode[7:]}"'.encode() in body:
                    refusal = {"error_code": "INVALID_PARAMETER_VALUE", "message": "not that one"}
                    self._say(400, json.dumps(refusal).encode(), "application/json")
                else:
                    back = http.client.HTTPConnection("127.0.0.1", backend_port, timeout=60)
                    headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                    back.request(self.command, self.path, body, headers)
                    response = back.getresponse()
                    self._say(response.status, response.read(), response.headers.get("Content-Type", "text/plain"))
                    back.close()

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

            def _say(self, status: int, content: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that was killed, or gave up

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def close(self) -> None:
        self.mode = "pass"
        self._server.shutdown()
        self._server.server_close()
