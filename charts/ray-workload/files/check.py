"""What `helm test` runs: the API answers, asks for its token, and a job runs to its end.

The cluster's API is URL in the environment, its token RAY_AUTH_TOKEN, if it has one. Standard library alone.
"""

import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

URL, TOKEN = os.environ["URL"], os.environ.get("RAY_AUTH_TOKEN")


def call(method: str, path: str, body: object = None, *, token: str | None = TOKEN) -> tuple[int, Any]:
    """The status code, and the answer where there is one."""
    request = urllib.request.Request(URL + path, method=method)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, None


def check(what: str, found: object, wanted: object) -> None:
    """Say it, and end the test where it is not so."""
    print(f"{what}: {found}")
    if found != wanted:
        raise SystemExit(f"{what}: {found}, and not {wanted}")


def reached() -> bool:
    """Whether anything answers."""
    try:
        call("GET", "/api/version")
    except OSError as error:
        print(f"{URL}: {error}")
        return False
    return True


# A NetworkPolicy admits a new pod only once its controller has seen the pod's address.
end = time.monotonic() + 30
while not reached() and time.monotonic() < end:
    time.sleep(0.5)

if TOKEN:
    check("without the token", call("GET", "/api/jobs/", token=None)[0], 401)
    check("with a wrong one", call("GET", "/api/jobs/", token="wrong")[0], 403)
check("with the token" if TOKEN else "without a token", call("GET", "/api/jobs/")[0], 200)

TASK = "import ray; ray.init(); print(ray.get(ray.remote(lambda: 6 * 7).remote()))"
status, job = call("POST", "/api/jobs/", {"entrypoint": f"python -c '{TASK}'"})
check("a job is taken", status, 200)
end = time.monotonic() + 120
found: dict[str, Any] = {}
while found.get("status") not in ("SUCCEEDED", "FAILED", "STOPPED") and time.monotonic() < end:
    time.sleep(0.5)
    found = call("GET", f"/api/jobs/{job['submission_id']}")[1] or {}
if found.get("status") != "SUCCEEDED":
    print(found.get("message"))
check("it ends", found.get("status"), "SUCCEEDED")
