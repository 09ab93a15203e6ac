"""The script of `helm test`: check that the API answers, that it requires the token, and that a job succeeds.

Environment: URL is the address of the API. RAY_AUTH_TOKEN is the token, if authentication is enabled.
"""

import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

URL, TOKEN = os.environ["URL"], os.environ.get("RAY_AUTH_TOKEN")


def call(method: str, path: str, body: object = None, *, token: str | None = TOKEN) -> tuple[int, Any]:
    """Return the status code and the body of the response. The body is None after an error."""
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
    """Print the result, and fail the test if it is not the wanted one."""
    print(f"{what}: {found}")
    if found != wanted:
        raise SystemExit(f"{what}: got {found}, expected {wanted}")


def reached() -> bool:
    """Return whether the API answers."""
    try:
        call("GET", "/api/version")
    except OSError as error:
        print(f"{URL}: {error}")
        return False
    return True


# Network policies admit a new pod only after the network plugin has learned its address.
end = time.monotonic() + 30
while not reached() and time.monotonic() < end:
    time.sleep(0.5)

if TOKEN:
    check("request without the token", call("GET", "/api/jobs/", token=None)[0], 401)
    check("request with a wrong token", call("GET", "/api/jobs/", token="wrong")[0], 403)
check("request with the token" if TOKEN else "request without a token", call("GET", "/api/jobs/")[0], 200)

# Without workers, a head that runs no tasks has no CPU until the autoscaler adds a worker.
TASK = 'import ray; ray.init(); ray.cluster_resources().get("CPU") and ray.get(ray.remote(lambda: 6 * 7).remote())'
status, job = call("POST", "/api/jobs/", {"entrypoint": f"python -c '{TASK}'"})
check("submit a job", status, 200)
end = time.monotonic() + 120
found: dict[str, Any] = {}
while found.get("status") not in ("SUCCEEDED", "FAILED", "STOPPED") and time.monotonic() < end:
    time.sleep(0.5)
    found = call("GET", f"/api/jobs/{job['submission_id']}")[1] or {}
if found.get("status") != "SUCCEEDED":
    print(found.get("message"))
check("status of the job", found.get("status"), "SUCCEEDED")
