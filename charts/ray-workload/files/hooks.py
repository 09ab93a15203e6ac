"""The script of the hook before an uninstall. It runs in a pod of the Ray image and uses only the standard library.

    hooks.py SECONDS   delete the cluster while the operator is still running

Environment: NAMESPACE and CLUSTER name the RayCluster. The API paths are those of KubeRay 1.7.0.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

NAMESPACE, CLUSTER = os.environ["NAMESPACE"], os.environ["CLUSTER"]
RAY, CORE = f"/apis/ray.io/v1/namespaces/{NAMESPACE}", f"/api/v1/namespaces/{NAMESPACE}"
THE_CLUSTER = f"{RAY}/rayclusters/{CLUSTER}"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def call(method: str, path: str, body: object = None) -> Any:
    """Return the response of the API server, or None if the object or its kind does not exist."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    request = urllib.request.Request(f"https://{host}:{port}{path}", method=method)
    request.add_header("Authorization", f"Bearer {(ACCOUNT / 'token').read_text()}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/merge-patch+json")
    tls = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Python 3.13 sets it by default, and CAs of old clusters fail it
    try:
        with urllib.request.urlopen(request, timeout=10, context=tls) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise SystemExit(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from error


def cleanup(seconds: float) -> None:
    """Delete the cluster and the RayJobs that select it, and wait until these objects and the pods are gone.

    After `seconds`, remove the finalizers, because without an operator nothing else removes them. If the hook cannot
    run, `end_cluster` in client/chart/remains.py deletes the same objects.
    """
    jobs = (call("GET", f"{RAY}/rayjobs") or {"items": []})["items"]
    selecting = [job for job in jobs if (job["spec"].get("clusterSelector") or {}).get("ray.io/cluster") == CLUSTER]
    objects = [f"{RAY}/rayjobs/{job['metadata']['name']}" for job in selecting] + [THE_CLUSTER]
    for path in objects:
        call("DELETE", path)
    pods = f"{CORE}/pods?labelSelector=ray.io%2Fcluster%3D{CLUSTER}"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        remaining = [path for path in objects if call("GET", path)] or (call("GET", pods) or {"items": []})["items"]
        if not remaining:
            print(f"RayCluster {NAMESPACE}/{CLUSTER} and its pods are gone")
            return
        time.sleep(0.5)
    for path in objects:
        if call("PATCH", path, {"metadata": {"finalizers": None}}):
            print(f"{path} still existed after {seconds:g} s: removed its finalizers; its data in Redis may remain")


if __name__ == "__main__":
    cleanup(float(sys.argv[1]))
