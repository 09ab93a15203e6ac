"""Runs in a pod: lists the files that a job left there, or sends some of them.

`client.job.fetch` sends this text to a Python of the pod, and a request as a line of JSON after it. Only the standard
library is there. A list is a line of JSON for each file. A file is a line of JSON with its size, its bytes, and a line
with the SHA-256 of all its bytes, also where the first of them were not asked for.
"""

import glob
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any

_CHUNK = 1 << 20


def roots(temp_dir: str, submission_id: str, outputs: str) -> "Iterator[tuple[str, int]]":
    """The folders of a job, each with the time, in ns, since when what changed there is the job's own."""
    folders = glob.glob(f"{glob.escape(temp_dir)}/session_2*/jobs/{submission_id}")
    if os.path.isabs(outputs) and os.path.realpath(outputs) not in map(os.path.realpath, folders):
        yield outputs, 0
    for folder in folders:
        copied = f"{os.path.dirname(folder)}/.{submission_id}"
        yield folder, os.stat(copied).st_ctime_ns if os.path.exists(copied) else 0


def files(root: str, since: int) -> "Iterator[dict[str, Any]]":
    """What a job left in a folder: regular files, and links with their targets; no bytecode."""
    top = os.path.realpath(root)
    for folder, folders, names in os.walk(top):
        if "__pycache__" in folders:
            folders.remove("__pycache__")
        for name in (*names, *folders):
            source = os.path.join(folder, name)
            try:
                info = os.lstat(source)
            except OSError:
                continue  # removed meanwhile
            if info.st_ctime_ns <= since or not (stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)):
                continue
            found = {"source": source, "path": os.path.relpath(source, top), "mtime": info.st_mtime_ns}
            if stat.S_ISLNK(info.st_mode):
                target, found["size"] = os.path.realpath(source), 0
                if target.startswith(top + os.sep):
                    yield {**found, "link": os.path.relpath(target, folder)}
                else:
                    yield {**found, "outside": os.readlink(source)}
            else:
                yield {**found, "size": info.st_size}


def send(source: str, offset: int) -> None:
    """Send a file from a byte on, as long as it is now."""
    out = sys.stdout.buffer
    try:
        file = open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb")
    except OSError as error:
        print(json.dumps({"error": error.strerror}), flush=True)
        return
    with file:
        info, digest, done = os.fstat(file.fileno()), hashlib.sha256(), 0
        size, mode = info.st_size, stat.S_IMODE(info.st_mode)
        print(json.dumps({"size": size, "mtime": info.st_mtime_ns, "mode": mode}), flush=True)
        while done < size:
            if not (chunk := file.read(min(_CHUNK, size - done))):
                sys.exit(f"{source} became shorter")
            digest.update(chunk)
            done += len(chunk)
            if done > offset:
                out.write(chunk[max(0, len(chunk) - (done - offset)) :])
        out.write(digest.hexdigest().encode() + b"\n")
        out.flush()


def main(temp_dir: str) -> None:
    """Answer the request."""
    request = json.loads(sys.stdin.buffer.readline())
    for source, offset in request.get("send", ()):
        send(source, offset)
    if "id" in request:
        for root, since in roots(temp_dir, request["id"], request["outputs"]):
            for found in files(root, since):
                print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[2])
