"""platform_services.py with a real PostgreSQL, Redis and Kafka, which fail in the middle."""

import contextlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import confluent_kafka
import psutil
import psycopg
import pytest
import redis
import requests
from confluent_kafka.admin import AdminClient
from ray import cloudpickle

from jobs import platform_services
from tests.conftest import ROOT
from tests.gallery.conftest import CLIENT, Job, run
from tests.gallery.services import Services, started

NAME = "ray_orders"
RATES = (100, 92, 117, 105, 9, 13, 8, 23)
ORDERS = 20_000
MANY = 60_000  # so that a job is still running when something fails


@pytest.fixture(scope="module")
def running() -> Iterator[Services]:
    with started() as services:
        yield services


@pytest.fixture(scope="module")
def warm(running: Services) -> Iterator[dict[str, str]]:
    """The environment of a Ray that is kept, and that knows the servers."""
    with tempfile.TemporaryDirectory(prefix="rwt", dir="/tmp") as own:  # so that `up` finds no other one
        env = {**running.env, "TMPDIR": own}
        done = run((*CLIENT, "up", "embedded"), Path(own), 120, **env)
        assert done.returncode == 0, done.stderr
        yield env
        done = run((*CLIENT, "down", "embedded"), Path(own), 60, **env)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def submit(folder: Path, warm: dict[str, str]) -> Job:
    """Return a function that runs `ray-workload submit` on that Ray."""
    return lambda *args: run((*CLIENT, "submit", *args), folder, 250, **warm)


@pytest.fixture
def services(running: Services) -> Services:
    """The servers, without what earlier jobs have left there."""
    execute(running, f"DROP TABLE IF EXISTS {NAME}")
    redis.Redis.from_url(running.env["REDIS_URL"]).flushall()
    admin = AdminClient(settings(running))
    if NAME in admin.list_topics(timeout=10).topics:
        admin.delete_topics([NAME])[NAME].result()
        until("the topic is deleted", lambda: NAME not in admin.list_topics(timeout=10).topics)
    return running


def until(what: str, found: Callable[[], Any], timeout: float = 60) -> Any:
    """Poll until `found` returns a true value, and return the value."""
    end = time.monotonic() + timeout
    while not (answer := found()):
        assert time.monotonic() < end, f"not within {timeout:g} s: {what}"
        time.sleep(0.02)
    return answer


def execute(services: Services, sql: str) -> Any:
    with psycopg.connect(services.env["DATABASE_URL"], autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else None


def settings(services: Services) -> dict[str, Any]:
    return {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in services.env.items()
        if name.startswith("KAFKA_")
    }


def messages(services: Services) -> list[tuple[int, int]]:
    """Return all messages of the topic: keys and values."""
    reading = {"group.id": "test", "enable.auto.commit": False, "enable.partition.eof": True}
    consumer = confluent_kafka.Consumer({**settings(services), **reading})
    partitions = consumer.list_topics(NAME, timeout=10).topics[NAME].partitions
    consumer.assign([confluent_kafka.TopicPartition(NAME, p, confluent_kafka.OFFSET_BEGINNING) for p in partitions])
    found, ended = [], 0
    while ended < len(partitions):
        message = consumer.poll(30)
        assert message, "the topic has no end"
        if message.error():
            assert message.error().code() == confluent_kafka.KafkaError._PARTITION_EOF, message.error()
            ended += 1
        else:
            found.append((int(message.key()), int(message.value())))
    consumer.close()
    return found


def expected(orders: int) -> list[tuple[int, int]]:
    return [(number, number * 7919 % 10007 * RATES[number % 8] // 100) for number in range(orders)]


def assert_right(services: Services, done: Any, orders: int) -> list[tuple[int, int]]:
    """Assert that each order is in the table once and in the topic, and return the topic's messages."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"all well: table and topic have each of the {orders:,} orders once" in done.stdout
    assert execute(services, f"SELECT number, cents FROM {NAME} ORDER BY number") == expected(orders)
    found = messages(services)
    assert sorted(set(found)) == expected(orders)
    return found


def test_a_second_run_changes_nothing(job: Job, services: Services) -> None:
    log = services.postgres.folder / "log"
    before = log.read_text().count("connection authorized")
    done = job("platform_services", timeout=250, **services.env)
    made = log.read_text().count("connection authorized") - before
    assert len(assert_right(services, done, ORDERS)) == ORDERS
    tasks, processes, hits = map(int, re.findall(r"(\d+) tasks in (\d+) processes; (\d+) of 160 rates", done.stdout)[0])
    assert tasks == 20 and 0 < hits < 160
    assert made <= processes + 2 < tasks, "each process connects once; so do the driver, and the task that reads"

    done = job("platform_services", timeout=250, **services.env)
    assert len(assert_right(services, done, ORDERS)) == 2 * ORDERS
    assert "160 of 160 rates were in the cache" in done.stdout


@contextlib.contextmanager
def in_the_middle(submit: Job, services: Services) -> Iterator[None]:
    """Run a job, the block when the job has stored some of its orders, and check the job's result."""
    with ThreadPoolExecutor() as pool:
        ran = pool.submit(submit, "jobs/platform_services.py", "--orders", str(MANY))
        until("there is a table", lambda: execute(services, f"SELECT to_regclass('{NAME}')") != [(None,)])
        until("there are rows", lambda: execute(services, f"SELECT count(*) FROM {NAME}")[0][0])
        yield
        assert not ran.done()
        done = ran.result()
    assert_right(services, done, MANY)


def kill_a_task(folder: str) -> int:
    """Kill a worker of the Ray in this folder that runs a task, and return its process id; 0 if there is none."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] == ["ray::convert"] and process.environ().get("TMPDIR") == folder:
                process.suspend()  # so that it does not end the task that it still runs now
                if process.cmdline()[:1] == ["ray::convert"]:
                    process.kill()
                    return process.pid
                process.resume()
    return 0


def test_a_worker_is_killed(submit: Job, services: Services, warm: dict[str, str]) -> None:
    with in_the_middle(submit, services):
        killed = until("a process runs a task", lambda: kill_a_task(warm["TMPDIR"]))
    assert not psutil.pid_exists(killed)


@pytest.mark.parametrize("name", ["postgres", "redis", "kafka"])
def test_a_server_restarts(submit: Job, services: Services, name: str) -> None:
    server = getattr(services, name)
    with in_the_middle(submit, services):
        before = server.process.pid
        server.stop()
        assert not psutil.pid_exists(before)
        server.start()
    assert server.process.pid != before


def assert_one_line(done: Any, services: Services, *words: str) -> None:
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stdout + done.stderr
    assert all(word in done.stderr for word in ("wrong: ", *words)), done.stderr
    assert services.password[1:] not in done.stderr


def test_kafka_is_down_at_the_start(job: Job, services: Services) -> None:
    services.kafka.stop()
    try:
        done = job("platform_services", timeout=250, **services.env)
    finally:
        services.kafka.start()
    assert_one_line(done, services, "Kafka cannot be used", services.env["KAFKA_BOOTSTRAP_SERVERS"], "refused")


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("DATABASE_URL", ("PostgreSQL cannot be used", "password authentication failed")),
        ("REDIS_URL", ("Redis cannot be used", "invalid username-password pair")),
        ("KAFKA_SASL_PASSWORD", ("Kafka cannot be used", "Authentication failed")),
    ],
)
def test_a_wrong_password(job: Job, services: Services, variable: str, words: tuple[str, ...]) -> None:
    value = services.env[variable].replace(services.password, "x" + services.password[1:])
    assert_one_line(job("platform_services", **(services.env | {variable: value})), services, *words)


@pytest.mark.parametrize(
    ("variable", "password"),
    [("DATABASE_URL", "a@{}"), ("DATABASE_URL", "{}%"), ("REDIS_URL", "a/{}"), ("REDIS_URL", "1/{}@b")],
)
def test_a_url_that_is_not_valid(job: Job, services: Services, variable: str, password: str) -> None:
    value = services.env[variable].replace(services.password, password.format(services.password[1:]))
    done = job("platform_services", **(services.env | {variable: value}))
    assert_one_line(done, services, f"{variable} is missing or not a valid URL")


def test_a_variable_is_missing(job: Job, services: Services) -> None:
    done = job("platform_services", **(services.env | {"DATABASE_URL": ""}))
    assert_one_line(done, services, "DATABASE_URL is missing")


def test_a_task_is_sent_without_connections(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in services.env.items():
        monkeypatch.setenv(name, value)
    platform_services.create_table()
    platform_services.create_topic()
    cloudpickle.register_pickle_by_value(platform_services)  # as Ray does with the script of a job
    try:
        for task in (platform_services.convert, platform_services.read_table, platform_services.read_partition):
            assert services.password.encode() not in cloudpickle.dumps(task)
    finally:
        cloudpickle.unregister_pickle_by_value(platform_services)


def test_ray_shows_no_password(submit: Job, services: Services, warm: dict[str, str]) -> None:
    submitted = submit("--id", "shown", "jobs/platform_services.py")
    assert_right(services, submitted, ORDERS)
    status = run((*CLIENT, "status", "shown", "-o", "json"), ROOT, 60, **warm)
    assert json.loads(status.stdout)["status"] == "SUCCEEDED"

    (ray,) = Path(warm["TMPDIR"]).glob("rw-*/warm")
    dashboard = f"http://127.0.0.1:{json.loads((ray / 'head.json').read_text())['dashboard_port']}"
    shown = [submitted.stdout, submitted.stderr, status.stdout]
    for path in ("api/jobs/", "api/v0/tasks?detail=1", "api/v0/workers?detail=1", "nodes?view=summary"):
        headers = {"Authorization": f"Bearer {(ray / 'token').read_text()}"}
        answer = requests.get(f"{dashboard}/{path}", headers=headers, timeout=30)
        assert answer.ok, answer.text
        shown.append(answer.text)
    assert "shown" in shown[3] and "convert" in shown[4]
    logs = [path.read_text(errors="replace") for path in ray.glob("session_2*/logs/**/*") if path.is_file()]
    assert any("all well: table and topic" in text for text in logs)
    assert not any(services.password in text for text in shown + logs)
