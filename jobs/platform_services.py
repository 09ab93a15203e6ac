"""Ray tasks with a cache (Redis), a table (PostgreSQL) and a topic (Kafka), right even if a process or a server fails.

Each task converts a shard of orders to euros: it gets the exchange rates from Redis, upserts a row per order into the
table, and produces a message per order to the topic. Other tasks then read the table and the topic and check both.
If a worker dies or a server restarts, Ray runs the task again. That changes nothing in the result: rows and messages
have the order's number as their key, so that the second one replaces the first.

It takes about 10 s. Ray's processes find the servers in their environment; on a cluster, set it with `env` in the
chart's values, where the passwords can come from a Secret:

    DATABASE_URL              postgresql://USER:PASSWORD@HOST/DATABASE
    REDIS_URL                 redis://:PASSWORD@HOST
    KAFKA_BOOTSTRAP_SERVERS   HOST:9092; the other variables of KAFKA_SETTINGS as your Kafka needs them

On a cluster:  ray-workload submit jobs/platform_services.py --orders 1000000
Without one:   python jobs/platform_services.py
"""

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import confluent_kafka
import psycopg
import ray
import redis
from confluent_kafka.admin import AdminClient, NewTopic

NAME = "ray_orders"  # of the table and the topic
SHARD = 1_000  # orders per task
RATES = {"EUR": 100, "USD": 92, "GBP": 117, "CHF": 105, "SEK": 9, "DKK": 13, "NOK": 8, "PLN": 23}  # euro cents
CURRENCIES = list(RATES)
KAFKA_SETTINGS = (
    "bootstrap.servers", "security.protocol", "sasl.mechanism", "sasl.username", "sasl.password", "ssl.ca.location",
)  # fmt: skip
OPEN: dict[Callable[[], Any], Any] = {}
UPSERT = f"INSERT INTO {NAME} VALUES (%s, %s) ON CONFLICT (number) DO UPDATE SET cents = EXCLUDED.cents"


def url(variable: str, scheme: str) -> str:
    """Return a server's URL. An error does not show one that is not valid, because it has the password."""
    found = os.environ.get(variable, "")
    if not re.fullmatch(rf"{scheme}://(([^/?#@%]|%[\da-fA-F]{{2}})*@)?[^@]+", found):
        raise ValueError(f"{variable} is missing or not a valid URL; special characters of a password are %XX in a URL")
    return found


def kafka(**more: object) -> dict[str, object]:
    """Return the settings of a Kafka client. Its errors come as exceptions, so it prints no log."""
    names = {setting: "KAFKA_" + setting.upper().replace(".", "_") for setting in KAFKA_SETTINGS}
    found = {setting: os.environ[name] for setting, name in names.items() if name in os.environ}
    if "bootstrap.servers" not in found:
        raise ValueError("KAFKA_BOOTSTRAP_SERVERS is missing")
    return {**found, "log_level": 0, **more}


def database() -> Any:
    """Connect to PostgreSQL."""
    return psycopg.connect(url("DATABASE_URL", "postgres(ql)?"), autocommit=True, connect_timeout=10)


def cache() -> Any:
    """Connect to Redis."""
    return redis.Redis.from_url(url("REDIS_URL", "rediss?"), decode_responses=True)


def producer() -> Any:
    """Connect to Kafka, to write each message once even if it has to be sent again."""
    return confluent_kafka.Producer(kafka(**{"enable.idempotence": True, "message.timeout.ms": 20_000}))


def connection(connect: Callable[[], Any]) -> Any:
    """Return the connection of this process. Its first task makes it: connections cannot be sent to a task."""
    if connect not in OPEN:
        OPEN[connect] = connect()
    return OPEN[connect]


def reason(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).partition("\n")[0]


def outages() -> tuple[type[Exception], ...]:
    """Return the errors of the libraries. Those of Kafka's cannot be sent to a task, nor from it."""
    return psycopg.OperationalError, redis.RedisError, confluent_kafka.KafkaException


@contextlib.contextmanager
def reconnecting() -> Iterator[None]:
    """At an outage, drop the connections of this process, and raise the error with which Ray runs the task again."""
    try:
        yield
    except outages() as error:
        print(f"this task will run again: {reason(error)}", flush=True)
        OPEN.clear()
        time.sleep(1)  # Ray does not wait
        raise ConnectionError(reason(error)) from None


def price(number: int) -> int:
    """Return the price of an order, in hundredths of its currency."""
    return number * 7919 % 10007


def euros(number: int, rates: dict[str, int]) -> int:
    """Return the price of an order in euro cents."""
    return price(number) * rates[CURRENCIES[number % len(CURRENCIES)]] // 100


def exchange_rates() -> tuple[dict[str, int], int]:
    """Return the exchange rates, and how many of them were in the cache."""
    found = connection(cache).mget(f"{NAME}:{currency}" for currency in CURRENCIES)
    rates = {currency: int(rate) for currency, rate in zip(CURRENCIES, found, strict=True) if rate}
    hits = len(rates)
    for currency in RATES.keys() - rates.keys():
        time.sleep(0.1)  # stands for a slow service
        rates[currency] = RATES[currency]
        connection(cache).set(f"{NAME}:{currency}", rates[currency], ex=3600)
    return rates, hits


def convert(start: int, stop: int) -> tuple[int, tuple[str, int]]:
    """Convert the orders from `start` up to `stop`, and return the hits of the cache and the process that did it."""
    with reconnecting():
        rates, hits = exchange_rates()
        rows = [(number, euros(number, rates)) for number in range(start, stop)]
        with connection(database).transaction(), connection(database).cursor() as cursor:
            cursor.executemany(UPSERT, rows)

        reports: list[Any] = []  # None, or the error of a message
        for number, cents in rows:
            connection(producer).produce(
                NAME, key=str(number), value=str(cents), on_delivery=lambda error, _: reports.append(error)
            )
        connection(producer).flush()
        if errors := [error for error in reports if error]:
            raise confluent_kafka.KafkaException(errors[0])
    return hits, (ray.util.get_node_ip_address(), os.getpid())


def read_table(orders: int) -> tuple[int, int]:
    """Return the number of rows, and the sum of their amounts."""
    with reconnecting(), connection(database).cursor() as cursor:
        cursor.execute(f"SELECT count(*), coalesce(sum(cents), 0) FROM {NAME} WHERE number < %s", [orders])
        rows, total = cursor.fetchone()
        return int(rows), int(total)


def read_partition(partition: int, orders: int) -> tuple[int, int, int]:
    """Read the topic's partition, and return the number of messages and of keys, and the sum of the amounts."""
    amounts: dict[int, int] = {}
    messages = 0
    with reconnecting():
        settings = {"group.id": NAME, "enable.auto.commit": False, "enable.partition.eof": True}
        consumer = confluent_kafka.Consumer(kafka(**settings))
        consumer.assign([confluent_kafka.TopicPartition(NAME, partition, confluent_kafka.OFFSET_BEGINNING)])
        while (message := consumer.poll(30)) and not message.error():
            if int(message.key()) < orders:
                messages += 1
                amounts[int(message.key())] = int(message.value())
        consumer.close()
        if not message or message.error().code() != confluent_kafka.KafkaError._PARTITION_EOF:
            raise confluent_kafka.KafkaException(message.error() if message else "no message for 30 s")
    return messages, len(amounts), sum(amounts.values())


def create_table() -> None:
    """Create the table if there is none."""
    with database() as connected:
        connected.execute(f"CREATE TABLE IF NOT EXISTS {NAME} (number bigint PRIMARY KEY, cents bigint)")


def check_cache() -> None:
    """Fail if the cache does not answer."""
    with cache() as connected:
        connected.ping()


def create_topic() -> int:
    """Create the topic if there is none, and return the number of its partitions. It keeps the last message per key."""
    errors: list[Any] = []
    admin = AdminClient(kafka(error_cb=errors.append))
    try:
        if NAME not in admin.list_topics(timeout=10).topics:
            admin.create_topics([NewTopic(NAME, 4, config={"cleanup.policy": "compact"})])[NAME].result()
        return len(admin.list_topics(NAME, timeout=10).topics[NAME].partitions)
    except confluent_kafka.KafkaException as error:
        admin.poll(0)  # gets the errors of the connection, which say more
        raise confluent_kafka.KafkaException(*errors[:1] or error.args) from None


def prepared(server: str, step: Callable[[], Any]) -> Any:
    """Return the result of a step, or exit with one line if its server is not known or does not answer."""
    try:
        return step()
    except ValueError as error:
        sys.exit(f"wrong: {error}")
    except outages() as error:
        sys.exit(f"wrong: {server} cannot be used: {reason(error)}")


def main() -> None:
    """Convert the orders, and check the table and the topic."""
    parser = argparse.ArgumentParser(description="Convert orders with Redis, PostgreSQL and Kafka.")
    parser.add_argument("--orders", type=int, default=20_000, help="number of orders (default: 20000)")
    orders = parser.parse_args().orders
    prepared("PostgreSQL", create_table)
    prepared("Redis", check_cache)
    partitions = prepared("Kafka", create_topic)

    ray.init()  # connects to the cluster when run as a job, else starts Ray on this machine
    again = {"max_retries": 60, "retry_exceptions": [ConnectionError]}  # an outage may last a minute
    task = ray.remote(**again)(convert)
    done = ray.get([task.remote(start, min(start + SHARD, orders)) for start in range(0, orders, SHARD)])
    hits, processes = sum(hits for hits, _ in done), len({process for _, process in done})
    print(f"{len(done)} tasks in {processes} processes; {hits} of {len(done) * len(RATES)} rates were in the cache")

    rows, stored = ray.get(ray.remote(**again)(read_table).remote(orders))
    reader = ray.remote(**again)(read_partition)
    read = ray.get([reader.remote(partition, orders) for partition in range(partitions)])
    messages, keys, announced = map(sum, zip(*read, strict=True))
    print(f"{rows:,} rows in the table, {messages:,} messages with {keys:,} keys in the topic")
    total = sum(euros(number, RATES) for number in range(orders))
    if not (rows == keys == orders and stored == announced == total):
        sys.exit(f"wrong: {orders:,} orders are {total:,}, but the table has {stored:,} and the topic {announced:,}")
    print(f"all well: table and topic have each of the {orders:,} orders once, together {total / 100:,.2f} euros")


if __name__ == "__main__":
    main()
