"""Runs in a pod: lists the files that a job left there, or sends some of them.

`client.job.files` sends this text to a Python of the pod, and a request as a line of JSON after it. Only the standard
library is there. A list is a line of JSON for each file. A file is a line of JSON with its size, its bytes, and a line
with the SHA-256 of all its bytes, also where the first of them were not asked for; it is wrong if the file changed.
"""

import errno
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
    folders = glob.glob(f"{glob.escape(temp_dir)}/session_2*/jobs/{glob.escape(submission_id)}")
    if os.path.isabs(outputs) and os.path.realpath(outputs) not in map(os.path.realpath, folders):
        yield outputs, 0
    for folder in folders:
        copied = f"{os.path.dirname(folder)}/.{submission_id}"
        yield folder, os.stat(copied).st_ctime_ns if os.path.exists(copied) else 0


def files(root: str, since: int) -> "Iterator[dict[str, Any]]":
    """List the files of a job in a folder: regular files, links, and errors of unreadable files; no bytecode."""
    top = os.path.realpath(root)
    failed: list[OSError] = []
    for folder, folders, names in os.walk(top, onerror=failed.append):
        if "__pycache__" in folders:
            folders.remove("__pycache__")
        for name in (*names, *folders):
            source = os.path.join(folder, name)
            try:
                info = os.lstat(source)
            except OSError as error:
                failed.append(error)
                continue
            if info.st_ctime_ns <= since or not (stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)):
                continue
            found = {"source": source, "path": os.path.relpath(source, top), "size": info.st_size}
            found.update(mtime=info.st_mtime_ns, identity=[info.st_ino, info.st_ctime_ns])
            if stat.S_ISLNK(info.st_mode):
                target, found["size"] = os.path.realpath(source), 0
                if target.startswith(top + os.sep):
                    found["link"] = os.path.relpath(target, folder)
                else:
                    found["outside"] = os.readlink(source)
            yield found
    for problem in failed:
        if problem.errno != errno.ENOENT:  # else it was removed meanwhile, or never there
            yield {"error": f"{problem.filename} cannot be read ({problem.strerror})"}


def send(source: str, offset: int) -> None:
    """Send a file, from a byte to where it ends now."""
    out = sys.stdout.buffer
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no regular file")
    except OSError as error:
        print(json.dumps({"error": error.strerror}), flush=True)
        return
    with open(descriptor, "rb") as file:
        before, digest, done = os.fstat(descriptor), hashlib.sha256(), 0
        mode = stat.S_IMODE(before.st_mode)
        print(json.dumps({"size": before.st_size, "mtime": before.st_mtime_ns, "mode": mode}), flush=True)
        is_whole = True
        while done < before.st_size:
            wanted = min(_CHUNK, before.st_size - done)
            try:
                chunk = file.read(wanted)
            except OSError:
                chunk = b""
            if not chunk:
                chunk, is_whole = bytes(wanted), False  # it became shorter after its size was sent
            digest.update(chunk)
            done += len(chunk)
            if done > offset:
                out.write(chunk[max(0, len(chunk) - (done - offset)) :])
        after = os.fstat(descriptor)
        if after.st_mtime_ns != before.st_mtime_ns and after.st_size <= before.st_size:  # more than lines added
            is_whole = False
        out.write((digest.hexdigest() if is_whole else "changed").encode() + b"\n")
        out.flush()


def main(temp_dir: str) -> None:
    """Answer the request."""
    request = json.loads(sys.stdin.buffer.readline())
    for source, offset in request.get("send", ()):
        send(source, offset)
    if "id" in request:
        for root, since in roots(temp_dir, request["id"], request["outputs"]):
            if not since and root != request["outputs"]:
                print(json.dumps({"shared": True}))  # the job ran in a folder that other jobs use, too
            for found in files(root, since):
                print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[2])
