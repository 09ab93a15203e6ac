"""`dashboard`: what the authorised browser gets, and how all other requests are refused."""

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from client.http import Server
from client.ray_api.dashboard import Dashboard
from client.targets.target import Target
from tests.client.server import Answer, Handler, serving
from tests.conftest import Cli


@dataclass
class Browser:
    """A browser with the link that `dashboard` printed."""

    link: str
    cookie: str = ""
    path: str = ""

    def enter(self) -> None:
        entered = requests.get(self.link)
        assert entered.status_code == 200
        cookie = entered.headers["Set-Cookie"]
        self.cookie = cookie.partition(";")[0]
        found = re.search(r"Path=(/\S+/);", cookie)
        assert found and f'url={found[1]}"' in entered.text
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        self.path = found[1]

    @property
    def netloc(self) -> str:
        return urlsplit(self.link).netloc

    def ask(
        self, method: str = "GET", target: str = "", body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Send one request with exactly this target; headers that are empty are not sent."""
        given = {"Host": self.netloc, "Cookie": self.cookie}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection(self.netloc, timeout=10)
        connection.putrequest(method, target or self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in given.items():
            if value:
                connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        try:
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()


@contextmanager
def shown(upstream: Server) -> Iterator[Browser]:
    """Serve a dashboard; yield a browser that has opened its link."""
    with Dashboard(upstream) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            browser = Browser(server.link())
            browser.enter()
            yield browser
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def browser(head: Target) -> Iterator[Browser]:
    with shown(head.http.server) as browser:
        yield browser


@contextmanager
def echoed(answer: Answer, headers: Mapping[str, str] | None = None) -> Iterator[Browser]:
    """Serve a dashboard for this upstream, below a path like that of the API server's proxy."""
    with serving(answer) as url, shown(Server(f"{url}/a/proxy", headers or {})) as browser:
        yield browser


def test_the_page_and_its_parts_are_shown(browser: Browser) -> None:
    status, _, page = browser.ask()
    assert status == 200 and b"<title>Ray Dashboard</title>" in page
    (script,) = re.findall(rb'src="\./(static/js/main\.\w+\.js)"', page)
    status, headers, content = browser.ask(target=browser.path + script.decode())
    assert (status, headers["Content-Length"]) == (200, str(len(content)))
    assert len(content) > 100_000
    status, _, jobs = browser.ask(target=f"{browser.path}api/jobs/")
    assert status == 200 and jobs.startswith(b"[")


def test_every_path_of_the_page_is_relative(browser: Browser) -> None:
    """An absolute path would be outside the path of the cookie."""
    page = browser.ask()[2].decode()
    assert not re.findall(r'(?:src|href)="(?!\./)', page)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Host": "rebound.example:80"},
        {"Host": "127.0.0.1.rebound.example"},
        {"Host": "user@127.0.0.1"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},  # another port on this machine
        {"Cookie": ""},
        {"Cookie": "ray-workload-1=x"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_what_another_page_sends_is_refused(browser: Browser, method: str, headers: dict[str, str]) -> None:
    status, answer, body = browser.ask(method, f"{browser.path}api/jobs/", None, **headers)
    assert status == 403
    assert b"submission_id" not in body and "Access-Control-Allow-Origin" not in answer


def test_our_own_page_may(browser: Browser) -> None:
    for host in (browser.netloc, browser.netloc.replace("127.0.0.1", "localhost")):
        own = {"Host": host, "Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
        assert browser.ask("GET", f"{browser.path}api/version", None, **own)[0] == 200


def test_the_cookie_without_the_path_and_the_path_without_the_cookie(browser: Browser) -> None:
    for target in ("/", "/api/version", f"/x{browser.path}api/version", "http://127.0.0.1/api/version"):
        assert browser.ask(target=target)[0] == 403
    assert requests.get(f"http://{browser.netloc}{browser.path}api/version").status_code == 403


def test_a_link_works_once(browser: Browser) -> None:
    again = requests.get(browser.link)
    assert again.status_code == 403 and "Set-Cookie" not in again.headers
    assert "Run `dashboard` again" in again.text
    assert browser.ask()[0] == 200


def test_a_link_is_not_used_up_by_a_page_that_is_refused(head: Target) -> None:
    with Dashboard(head.http.server) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            browser = Browser(server.link())
            assert browser.ask(target=urlsplit(browser.link).path, Host="rebound.example")[0] == 403
            assert browser.ask("POST", urlsplit(browser.link).path, b"")[0] == 403
            browser.enter()
        finally:
            server.shutdown()
            thread.join()


def test_a_browser_may_not_send_jobs(browser: Browser) -> None:
    """Ray itself refuses requests that it recognises as a browser's."""
    agent = {"User_Agent": "Mozilla/5.0", "Content_Type": "application/json"}
    status, _, body = browser.ask("POST", f"{browser.path}api/jobs/", b'{"entrypoint": "true"}', **agent)
    assert (status, body) == (405, b"'POST' method not allowed for browser traffic.")


@pytest.mark.parametrize(
    "way", ["..", "../..", "x/../../y", "%2e%2e/x", "..%2fx", "%252e%252e/x", "%2e%2e%2f%2e%2e%2fx", "..\\x", "..%5cx"]
)
def test_no_path_leads_out(way: str) -> None:
    asked: list[str] = []

    def answer(handler: Handler, _: bytes) -> tuple[int, Mapping[str, str], bytes]:
        asked.append(handler.path)
        return 200, {}, b""

    with echoed(answer) as browser:
        assert browser.ask(target=browser.path + way)[0] == 400
        assert asked == []
        assert browser.ask(target=f"{browser.path}..x/y..?z=../..")[0] == 200
        assert asked == ["/a/proxy/..x/y..?z=../.."]


def test_what_is_sent_on() -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []

    def answer(handler: Handler, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        seen.append((handler.path, dict(handler.headers.items()), body))
        return 200, {"Set-Cookie": "token=t0p", "Access-Control-Allow-Origin": "*", "X-Own": "y"}, b"\x1f\x8bzipped"

    with echoed(answer, {"X-Ray-Authorization": "Bearer t0psecret"}) as browser:
        own = {"X_Ray_Authorization": "a", "Authorization": "b", "Impersonate_User": "c", "X_Other": "d"}
        own |= {"Referer": browser.link, "Connection": "X-Hop", "X_Hop": "e", "User_Agent": "Mozilla/5.0"}
        status, headers, body = browser.ask("POST", f"{browser.path}x?y=%2F", b"\0" * 300_000, **own)
    (path, sent, content) = seen[0]
    assert (path, content) == ("/a/proxy/x?y=%2F", b"\0" * 300_000)
    lower = {name.lower(): value for name, value in sent.items()}
    assert lower["x-ray-authorization"] == "Bearer t0psecret" and lower["user-agent"] == "Mozilla/5.0"
    assert lower["x-other"] == "d"
    assert not {"authorization", "cookie", "referer", "impersonate-user", "x-hop"} & lower.keys()
    assert (status, body, headers["X-Own"]) == (200, b"\x1f\x8bzipped", "y")
    assert not {"set-cookie", "access-control-allow-origin"} & {name.lower() for name in headers}
    assert b"t0psecret" not in b"".join(f"{k}{v}".encode() for k, v in headers.items()) + body


def test_a_redirect_stays_here() -> None:
    with echoed(lambda handler, _: (302, {"Location": "/a/proxy/there?x"}, b"")) as browser:
        status, headers, _ = browser.ask()
        assert (status, headers["Location"]) == (302, f"{browser.path}there?x")


def test_an_answer_is_shown_as_it_comes_and_a_cut_one_is_not_whole() -> None:
    go = threading.Event()

    def answer(handler: Handler, _: bytes) -> tuple[int, Mapping[str, str], bytes]:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        assert go.wait(10)
        handler.close_connection = True
        raise ConnectionResetError

    with echoed(answer) as browser:
        connection = http.client.HTTPConnection(browser.netloc, timeout=10)
        connection.request("GET", browser.path, headers={"Cookie": browser.cookie})
        response = connection.getresponse()
        assert response.read1(100) == b"first"
        go.set()
        with pytest.raises(http.client.IncompleteRead):
            response.read()
        connection.close()


def test_an_upstream_that_is_gone() -> None:
    with shown(Server("http://127.0.0.1:1")) as browser:
        status, _, body = browser.ask()
    assert status == 502 and b"Connection refused" in body


def test_the_command_prints_a_link_until_ctrl_c(remote: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "client", "dashboard"]
    pipe, env = subprocess.PIPE, {**os.environ, **remote}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe) as process:
        assert process.stdout
        browser = Browser(process.stdout.readline().decode().strip())
        browser.enter()
        assert browser.ask(target=f"{browser.path}api/version")[0] == 200
        token = Path(remote["RAY_AUTH_TOKEN_PATH"]).read_text().encode()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    first, second = err.splitlines()
    assert (process.returncode, out) == (0, b"")
    assert b"(RAY_WORKLOAD_ADDRESS)" in first and b"until Ctrl-C" in second and token not in err


def test_the_command_on_a_remote_machine_prints_the_tunnel(remote: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "client", "dashboard"]
    pipe = subprocess.PIPE
    for connection, destination in (
        ("10.0.0.9 50000 10.0.0.5 22", "me@10.0.0.5"),
        ("fd00::9 50000 fd00::5 2222", "-p 2222 me@fd00::5"),
    ):
        env = {**os.environ, **remote, "SSH_CONNECTION": connection, "LOGNAME": "me"}
        with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe) as process:
            assert process.stdout
            port = urlsplit(process.stdout.readline().decode().strip()).port
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=10)
        tunnel = f"ssh -N -L {port}:127.0.0.1:{port} {destination}"
        assert f"ray-workload: on the machine with the browser, first run: {tunnel}\n" in err.decode()


def test_the_command_where_nothing_answers(run: Cli, remote: dict[str, str]) -> None:
    begun = time.monotonic()
    done = run("dashboard", "--address", "http://127.0.0.1:1")
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (69, b"", 1)
    done = run("dashboard", env={**remote, "RAY_AUTH_TOKEN_PATH": ""})
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (77, b"", 2)
    assert b"(RAY_WORKLOAD_ADDRESS)" in done.stderr
    assert time.monotonic() - begun < 30
