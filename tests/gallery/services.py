"""PostgreSQL, Redis and Kafka in a new folder, each with a password. Needs only the standard library.

    python -m tests.gallery.services python jobs/platform_services.py    # runs a command with servers of its own
    python -m tests.gallery.services                                     # serves on the usual ports until a signal

The second needs SERVICES_HOST, the name by which its clients know this machine, and SERVICES_PASSWORD.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

KAFKA = Path(__file__).parents[2] / "build" / "kafka"
JAVA = ["-Xmx256m", "-XX:TieredStopAtLevel=1", "-cp", f"{KAFKA}/*"]  # starts sooner
PORTS = {"postgres": 5432, "redis": 6379, "kafka": 9092, "controller": 9093}
REDIS_CONF = """
bind {bind}
port {ports[redis]}
requirepass {password}
save ""
"""
KAFKA_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{ports[controller]}
listeners=CLIENT://{bind}:{ports[kafka]},CONTROLLER://127.0.0.1:{ports[controller]}
advertised.listeners=CLIENT://{host}:{ports[kafka]}
listener.security.protocol.map=CLIENT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENT
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.client.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \\
  username="ray" password="{password}" user_ray="{password}";
log.dirs=data
"""


@dataclass
class Server:
    """A server with a folder of its own."""

    folder: Path
    command: list[str]
    ready: str  # its log has this when it serves
    kill: signal.Signals = signal.SIGKILL  # ends it without a clean shutdown
    user: str | None = None
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def run(self, *command: str) -> None:
        """Run a command in the server's folder, as its user."""
        done = subprocess.run(
            command, cwd=self.folder, user=self.user, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{command[0]}: exit code {done.returncode}\n{done.stdout}")

    def start(self) -> None:
        """Start the server and wait until it serves."""
        log = self.folder / "log"
        with log.open("wb") as file:
            self.process = subprocess.Popen(self.command, cwd=self.folder, user=self.user, stdout=file, stderr=file)
        end = time.monotonic() + 60
        while self.ready not in log.read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{self.command[0]} does not start:\n{log.read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server at once, as a crash would."""
        if self.process:
            self.process.send_signal(self.kill)
            self.process.wait()
            self.process = None


def program(name: str) -> str:
    """Return the path of a server's program. Debian does not put those of PostgreSQL on PATH."""
    path = os.pathsep.join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
    if not (found := shutil.which(name, path=path)):
        raise FileNotFoundError(f"{name} is not installed: run `ci/services`")
    return found


def free_ports() -> dict[str, int]:
    """Return a port that is free now for each of PORTS."""
    with contextlib.ExitStack() as open_sockets:
        found = [open_sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
        return dict(zip(PORTS, (one.getsockname()[1] for one in found), strict=True))


class Services:
    """The three servers, by name, and the environment with which a job finds them."""

    def __init__(self, folder: Path, host: str, bind: str, ports: dict[str, int], password: str) -> None:
        self.password = password
        self.env = {
            "DATABASE_URL": f"postgresql://ray:{password}@{host}:{ports['postgres']}/postgres",
            "REDIS_URL": f"redis://:{password}@{host}:{ports['redis']}",
            "KAFKA_BOOTSTRAP_SERVERS": f"{host}:{ports['kafka']}",
            "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA_SASL_MECHANISM": "PLAIN",
            "KAFKA_SASL_USERNAME": "ray",
            "KAFKA_SASL_PASSWORD": password,
        }
        user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL does not run as root
        java = program("java")
        if not KAFKA.exists():
            raise FileNotFoundError("Kafka is not installed: run `ci/services`")
        folder.chmod(0o711)
        for name in ("postgres", "redis", "kafka"):
            (folder / name).mkdir(0o700)
        settings = {"bind": bind, "host": host, "ports": ports, "password": password}
        (folder / "redis/redis.conf").write_text(REDIS_CONF.format(**settings))
        (folder / "kafka/properties").write_text(KAFKA_PROPERTIES.format(**settings))
        (folder / "postgres/password").write_text(password)
        if user:
            for path in (folder / "postgres", folder / "postgres/password"):
                shutil.chown(path, user)

        listen = ["-h", bind, "-p", str(ports["postgres"]), "-k", "", "-c", "fsync=off", "-c", "log_connections=on"]
        self.postgres = Server(
            folder / "postgres", [program("postgres"), "-D", "data", *listen], "ready to accept connections",
            signal.SIGQUIT, user,
        )  # fmt: skip
        self.redis = Server(folder / "redis", [program("redis-server"), "redis.conf"], "Ready to accept connections")
        self.kafka = Server(folder / "kafka", [java, *JAVA, "kafka.Kafka", "properties"], "Kafka Server started")
        login = ("--username=ray", "--pwfile=password", "--auth=scram-sha-256")
        self.postgres.run(program("initdb"), "--pgdata=data", "--no-sync", *login)
        self.postgres.run("sh", "-c", "echo host all all all scram-sha-256 >>data/pg_hba.conf")
        self.kafka.run(java, *JAVA, "kafka.tools.StorageTool", "format", "-t", "0" * 22, "-c", "properties")

    def start(self) -> None:
        """Start all servers."""
        for server in (self.postgres, self.redis, self.kafka):
            server.start()

    def stop(self) -> None:
        """End all servers."""
        for server in (self.postgres, self.redis, self.kafka):
            server.stop()


@contextlib.contextmanager
def started(host: str = "", password: str = "") -> Iterator[Services]:
    """Run the servers until the end of the block.

    Args:
        host: the name by which clients on other machines know this one. If empty, the servers listen on free ports of
            127.0.0.1, else on the usual ports of every address.
        password: of all three; by default, a random one.
    """
    where = (host, "0.0.0.0", PORTS) if host else ("127.0.0.1", "127.0.0.1", free_ports())
    folder = Path(tempfile.mkdtemp(prefix="rwt", dir="/tmp"))
    services = None
    try:
        services = Services(folder, *where, password or secrets.token_urlsafe())
        services.start()
        yield services
    finally:
        if services:
            services.stop()
        shutil.rmtree(folder)


if __name__ == "__main__":
    if command := sys.argv[1:]:
        with started() as services:
            sys.exit(subprocess.run(command, env={**os.environ, **services.env}, check=False).returncode)
    with started(os.environ["SERVICES_HOST"], os.environ["SERVICES_PASSWORD"]):
        print("all servers are ready", flush=True)
        signal.sigwait([signal.SIGTERM, signal.SIGINT])
