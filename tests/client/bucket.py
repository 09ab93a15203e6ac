"""Stand-ins for S3 and Google Cloud Storage, which record each request."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs, unquote, urlsplit

from tests.client.server import Handler

Reply = tuple[int, Mapping[str, str], bytes]
UPLOAD_ID = "u-p-l-o-a-d"


class Store:
    """The objects of one bucket named `bucket`.

    `requests` has each request: the method, the object or the folder with what is done to it, the first 8 digits of the
    SHA-256 of the body's bytes that belong to the object. `fail` may answer instead.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.parts: list[bytes] = []
        self.pending: str | None = None  # the name of an upload that was begun
        self.requests: list[tuple[str, str, str]] = []
        self.fail: Callable[[str, str], Reply | None] = lambda method, what: None

    def record(self, method: str, what: str, body: bytes) -> Reply | None:
        self.requests.append((method, what, digest(body) if body else ""))
        return self.fail(method, what)

    def begin(self, name: str) -> None:
        self.pending, self.parts = name, []

    def commit(self) -> str:
        assert self.pending
        name, self.pending = self.pending, None
        self.objects[name] = b"".join(self.parts)
        return name

    def s3(self, asked: Handler, body: bytes) -> Reply:
        url = urlsplit(asked.path)
        query, (_, bucket, *rest) = parse_qs(url.query, keep_blank_values=True), unquote(url.path).split("/", 2)
        name = rest[0] if rest else ""
        action = next((key for key in ("uploads", "partNumber", "uploadId") if key in query), "")
        what = name + (f"?{action}" if action else "") if name else f"list {query.get('prefix', [''])[0]}"
        is_data = asked.command == "PUT"
        if failed := self.record(asked.command, what, body if is_data else b""):
            return failed
        if bucket != "bucket":
            return s3_error(404, "NoSuchBucket")
        if not name:
            return 200, {}, b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"
        if action == "uploads":
            self.begin(name)
            return 200, {}, f"<R><UploadId>{UPLOAD_ID}</UploadId></R>".encode()
        if action == "partNumber":
            self.parts.append(body)
            return 200, {"ETag": f'"{digest(body)}"'}, b""
        if action == "uploadId" and asked.command == "POST":
            self.commit()
            return 200, {}, b'<CompleteMultipartUploadResult><ETag>"x"</ETag></CompleteMultipartUploadResult>'
        if action == "uploadId":
            self.pending = None
            return 204, {}, b""
        if asked.command == "PUT":
            self.objects[name] = body
            return 200, {"ETag": '"x"'}, b""
        if name not in self.objects:
            return s3_error(404, "NoSuchKey")
        return content(asked, self.objects[name])

    def gs(self, asked: Handler, body: bytes) -> Reply:
        url = urlsplit(asked.path)
        query = parse_qs(url.query)
        if "upload_id" in query:
            what = f"{self.pending}?upload_id"
        elif "/upload/" in url.path:
            what = f"?uploadType={query['uploadType'][0]}"
        elif url.path.endswith("/o"):
            what = f"list {query.get('prefix', [''])[0]}"
        else:
            what = unquote(url.path.rpartition("/o/")[2])
        if failed := self.record(asked.command, what, body if "upload_id" in what else b""):
            return failed
        if "/b/bucket/" not in url.path:
            return 404, {}, b'{"error": {"code": 404, "message": "no bucket"}}'
        if "resumable" in what:
            self.begin(json.loads(body)["name"])
            host = asked.headers["Host"]
            return 200, {"Location": f"http://{host}/upload/storage/v1/b/bucket/o?upload_id={UPLOAD_ID}"}, b""
        if "upload_id" in what:
            if asked.command == "DELETE":
                self.pending = None
                return 204, {}, b""
            self.parts.append(body)
            sent = sum(map(len, self.parts))
            if asked.headers["Content-Range"].endswith("/*"):
                return 308, {"Range": f"bytes=0-{sent - 1}"}, b""
            name = self.commit()
            return self._metadata(name)
        if what.startswith("list "):
            return 200, {"Content-Type": "application/json"}, b'{"items": []}'
        if what not in self.objects:
            return 404, {}, b'{"error": {"code": 404, "message": "no object"}}'
        return content(asked, self.objects[what]) if "media" in url.query else self._metadata(what)

    def _metadata(self, name: str) -> Reply:
        data = {"name": name, "bucket": "bucket", "size": str(len(self.objects[name])), "generation": "1"}
        return 200, {"Content-Type": "application/json"}, json.dumps(data).encode()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def s3_error(status: int, code: str) -> Reply:
    return status, {}, f"<Error><Code>{code}</Code><Message>hidden words</Message></Error>".encode()


def content(asked: Handler, data: bytes) -> Reply:
    headers = {"ETag": '"x"'}
    if part := re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers["Range"] or ""):
        first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
        return 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]
    return 200, headers, data
