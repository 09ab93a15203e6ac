"""Ray Serve: an HTTP application that is deployed, gets a second replica under load, and is removed.

On a cluster:     ray-workload submit jobs/serve_app.py
Without one:      python jobs/serve_app.py
To use it, too:   ray-workload submit --detach --id app jobs/serve_app.py --keep

With --keep, it serves until the job is stopped, here with `ray-workload stop app`. With the chart's value
`api.serve=true`, pods with the label `ray-workload/client: "true"` use it at http://<cluster>-api:8000/primes?n=97.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import requests
from ray import serve

PRIME = 10**12 + 39  # the only prime in NUMBERS
NUMBERS = range(PRIME - 8, PRIME + 1)
REQUESTS = 16  # at the same time
DEADLINE = 60  # seconds


class Primes:
    """Says whether a number is a prime. Each replica is an actor somewhere in the cluster."""

    def __call__(self, request: Any) -> dict[str, Any]:
        """Answer `GET /primes?n=NUMBER`, and say which replica does."""
        n = int(request.query_params["n"])
        prime = n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
        return {"n": n, "prime": prime, "replica": serve.get_replica_context().replica_tag}


def ask(url: str, n: int) -> str:
    """Ask the application about one number, check its answer, and return the replica that gave it."""
    response = requests.get(url, params={"n": n}, timeout=30)
    response.raise_for_status()
    answer = response.json()
    if answer["prime"] != (n == PRIME):
        sys.exit(f"wrong: {answer}")
    return str(answer["replica"])


def load(url: str) -> set[str]:
    """Ask many times at once until two replicas have answered, and return their names."""
    end = time.monotonic() + DEADLINE
    with ThreadPoolExecutor(REQUESTS) as pool:
        while len(found := set(pool.map(ask, [url] * REQUESTS, [PRIME] * REQUESTS))) < 2:
            if time.monotonic() > end:
                sys.exit(f"wrong: after {DEADLINE} s of load, there is still one replica")
    return found


def main() -> None:
    """Deploy the application, use it, and remove it."""
    parser = argparse.ArgumentParser(description="Serve an HTTP application with Ray Serve.")
    parser.add_argument("--port", type=int, default=8000, help="HTTP port of Serve (default: 8000)")
    parser.add_argument("--keep", action="store_true", help="serve until the job is stopped")
    args = parser.parse_args()

    # Connects to the cluster when run as a job, else starts Ray on this machine.
    ray.init(log_to_driver=False)
    # Only now: with the handler that ray.init sets, the process has 3 s, which the removal may exceed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # In a pod, other pods connect; on a machine, only its own programs.
    host = "0.0.0.0" if "KUBERNETES_SERVICE_HOST" in os.environ else "127.0.0.1"
    serve.start(http_options={"host": host, "port": args.port}, logging_config={"log_level": "WARNING"})
    url = f"http://127.0.0.1:{args.port}/primes"
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2, "upscale_delay_s": 1}
    app = serve.deployment(ray_actor_options={"num_cpus": 0.1}, autoscaling_config=scaling)(Primes)
    try:
        serve.run(app.bind(), name="primes", route_prefix="/primes")
        print(f"one replica answers at {url}: {', '.join({ask(url, n) for n in NUMBERS})}")
        print(f"with {REQUESTS} requests at once, two do: {', '.join(sorted(load(url)))}", flush=True)
        if args.keep:
            print("serving until the job is stopped", flush=True)
            signal.pause()
    finally:
        serve.delete("primes")
        if not serve.status().applications:  # else Serve remains for the applications of others
            serve.shutdown()
    with contextlib.suppress(requests.ConnectionError):
        if requests.get(url, timeout=10).status_code != 404:
            sys.exit(f"wrong: {url} still answers")
    print("all well: each answer was right, and nothing answers after the removal")


if __name__ == "__main__":
    main()
