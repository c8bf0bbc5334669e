"Servers on the loopback address, for tests: they live as long as a block, and can break a connection in the middle."
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128
    shutdown_request = ThreadingHTTPServer.close_request # no orderly end, so that a connection can be reset


class Loopback:
    "What answers requests, as a context manager; `handler` is a `Handler`, which knows it as `owner`"
    handler, server_class = None, Server

    def __enter__(self):
        self.server = self.server_class(("127.0.0.1", 0), type("Bound", (self.handler,), {"owner": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log_message = lambda *_: None

    def head(self, status, headers):
        "The first lines of a reply"
        self.send_response(status)
        for k, v in headers.items(): self.send_header(k, v)
        self.end_headers()

    def reset(self):
        "End the connection without an end"
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
