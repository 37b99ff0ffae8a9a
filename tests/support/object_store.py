"""An object store on loopback that speaks as much S3 as pyarrow's own client asks for; it can be away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


class ObjectStore:
    """What is stored, by ``/bucket/key``."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.away = False
        self.asked: list[str] = []
        self.port = 0

    def uri(self, path: str) -> str:
        """The URI of a folder, for ``pyarrow.fs.FileSystem.from_uri``."""
        return f"s3://{path}?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{self.port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: ObjectStore

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _raw_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue
        return data

    def _body(self) -> bytes:
        data = self._raw_body()
        if "aws-chunked" not in (self.headers.get("Content-Encoding") or ""):
            return data
        whole = b""
        while data:  # "size[;signature]\r\n", the bytes, "\r\n"; a chunk of no size is followed by trailers
            head, _, data = data.partition(b"\r\n")
            size = int(head.split(b";")[0], 16)
            if not size:
                break
            whole, data = whole + data[:size], data[size + 2 :]
        return whole

    def _serve(self) -> None:
        store, parts = self.store, urlsplit(self.path)
        key, query = unquote(parts.path), parse_qs(parts.query, keep_blank_values=True)
        body = self._body()
        store.asked.append(f"{self.command} {key} {' '.join(query)}")
        upload = query.get("uploadId", [""])[0]
        source = self.headers.get("x-amz-copy-source")
        if store.away:
            self._answer(403)  # the client would try a 503 again for many seconds
        elif self.command == "POST" and "uploads" in query:
            store.uploads[str(len(store.uploads) + 1)] = {}
            text = f"<InitiateMultipartUploadResult {XMLNS}><UploadId>{len(store.uploads)}</UploadId>"
            self._answer(200, f"{text}</InitiateMultipartUploadResult>".encode())
        elif self.command == "PUT" and upload:
            store.uploads[upload][int(query["partNumber"][0])] = body
            self._answer(200, ETag='"x"')
        elif self.command == "POST" and upload:
            store.objects[key] = b"".join(part for _, part in sorted(store.uploads[upload].items()))
            self._answer(200, f"<CompleteMultipartUploadResult {XMLNS}/>".encode())
        elif self.command == "PUT" and source:
            store.objects[key] = store.objects["/" + unquote(source).lstrip("/")]
            self._answer(200, f'<CopyObjectResult {XMLNS}><ETag>"x"</ETag></CopyObjectResult>'.encode())
        elif self.command == "PUT":
            store.objects[key] = body
            self._answer(200, ETag='"x"')
        elif self.command == "DELETE":
            store.objects.pop(key, None)
            self._answer(204)
        elif self.command == "HEAD" and (key in store.objects or key.strip("/").count("/") == 0):
            self._answer(200)
        elif self.command == "GET" and "list-type" in query:
            text = f"<ListBucketResult {XMLNS}><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated>"
            self._answer(200, f"{text}</ListBucketResult>".encode())
        else:
            self._answer(404)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A store on a free port."""
    store = ObjectStore()
    handler = type("Handler", (_Handler,), {"store": store})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        store.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield store
        finally:
            server.shutdown()
            thread.join()
