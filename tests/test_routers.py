"""`pyskip serve` behind others' routers: what they ask of a server (health, signals, sockets), and examples/routers,
each run where its program is there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import ROOT
from serving import free_port, running, wait_until

from pyskip.cli.main import run

pytestmark = pytest.mark.loopback

ROUTERS = ROOT / "examples" / "routers"
CHAT = "/v1/chat/completions"
SHORT = {"messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 3, "temperature": 0}
ENDLESS = {**SHORT, "max_tokens": 10_000, "ignore_eos": True, "stream": True}
LONGER = ("-c", "16384", "--", "--override-kv", "llama.context_length=int:65536")  # the tiny model says 512
PROXYD = Path("/lib/systemd/systemd-socket-proxyd")


def answers(url: str, **kwargs: Any) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/health", **kwargs).status_code == 200
    return False


@contextmanager
def program(*command: str, **kwargs: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **kwargs)
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def at_socket(model: Path, path: Path) -> Any:
    """The server at a Unix socket; a context manager."""
    command = [sys.executable, "-m", "pyskip", "serve", f"tiny={model}", "--host", str(path), "-t", "1", *LONGER]
    return program(*command, stderr=subprocess.DEVNULL)


def client_of(path: Path) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost", timeout=60)


def is_ready(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except OSError:  # httpx leaves sockets open that cannot be connected
            return False
    with client_of(path) as client:
        return client.get("/health").status_code == 200


# What a router asks for


def test_health_tells_its_state(tiny: Path) -> None:
    with running(str(tiny), "--grace", "20", *LONGER) as server:
        assert server.get("/health").json() == {"status": "ok"}
        assert server.metric("pyskip_slots") == 4
        with server.client.stream("POST", server.url + CHAT, json=ENDLESS) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.get("/health").status_code == 503)
            draining = server.get("/health").json()["error"]
            assert draining["code"] == "shutting_down"
            assert any(line.startswith("data: ") for line in lines)  # goes on
        assert server.process.wait(20) == 0


def test_health_of_each_of_several_models(tiny: Path) -> None:
    with running(f"a={tiny}", f"b={tiny}") as server:

        def states() -> dict[str, str]:
            return {model["id"]: model["status"]["value"] for model in server.get("/v1/models").json()["data"]}

        assert set(states()) == {"a", "b"}
        wait_until(lambda: set(states().values()) == {"loaded"})


def test_a_unix_socket(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "server.sock"
    for _ in range(2):  # the second finds what the first left behind
        with at_socket(tiny, path) as server, client_of(path) as client:
            wait_until(lambda: is_ready(path))
            assert client.post(CHAT, json=SHORT).status_code == 200
            assert run(["serve", str(tiny), "--host", str(path)]) == 1
            assert "another server answers there" in capsys.readouterr().err
            server.send_signal(signal.SIGKILL)
            server.wait()
    assert path.exists()
    path.unlink()
    path.write_text("")
    for bad, said in ((path, "a file is there"), (tmp_path / "no" / "x.sock", "its folder is not there")):
        assert run(["serve", str(tiny), "--host", str(bad)]) == 1
        assert re.fullmatch(rf"pyskip: cannot listen at {bad} \({said}[^\n]*\n", capsys.readouterr().err)
    assert path.read_text() == ""


# The examples


@pytest.fixture
def nginx(tiny: Path, tmp_path: Path) -> Iterator[tuple[str, dict[str, subprocess.Popen[bytes]]]]:
    """Its address, and the servers behind it."""
    found = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if not found:
        pytest.skip("no nginx (Debian: apt-get install nginx-light)")
    port = free_port()
    config = (ROUTERS / "nginx.conf").read_text().replace("/run/pyskip", str(tmp_path))
    config = config.replace("listen 127.0.0.1:8000", f"listen 127.0.0.1:{port}")
    folders = "".join(
        f"{name}_temp_path {tmp_path}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = config.replace("http {", f"http {{\naccess_log off;\n{folders}", 1).replace(
        "worker_processes auto", "worker_processes 1"
    )
    user = "user root;\n" if os.getuid() == 0 else ""  # the folder is this test's alone
    (tmp_path / "nginx.conf").write_text(user + config)
    with ExitStack() as stack:
        servers = {name: stack.enter_context(at_socket(tiny, tmp_path / f"{name}.sock")) for name in ("a", "b")}
        for name in servers:
            wait_until(partial(is_ready, tmp_path / f"{name}.sock"))
        options = ["-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "error.log")]
        stack.enter_context(program(found, *options, "-g", f"daemon off; pid {tmp_path}/nginx.pid;"))
        wait_until(lambda: answers(f"http://127.0.0.1:{port}"))
        yield f"http://127.0.0.1:{port}", servers


def n_answered(folder: Path, name: str) -> float:
    with client_of(folder / f"{name}.sock") as client:
        found = re.search(rf'pyskip_requests_total{{path="{CHAT}",status="200"}} (\d+)', client.get("/metrics").text)
    return float(found[1]) if found else 0.0


def test_nginx(nginx: tuple[str, dict[str, subprocess.Popen[bytes]]], tmp_path: Path) -> None:
    url, servers = nginx
    with httpx.Client(base_url=url, timeout=60) as client:
        with client.stream("POST", CHAT, json=ENDLESS) as stream:  # occupies one of them, and comes as it is written
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            before = {name: n_answered(tmp_path, name) for name in servers}
            assert [client.post(CHAT, json=SHORT).status_code for _ in range(4)] == [200] * 4
            more = [n_answered(tmp_path, name) - before[name] for name in servers]
            assert sorted(more) == [0, 4]  # least_conn: the other one
        servers["a"].send_signal(signal.SIGTERM)  # told to stop: 503 or gone, and the other is asked
        assert [client.post(CHAT, json=SHORT).status_code for _ in range(6)] == [200] * 6


def test_llama_swap(tiny: Path) -> None:
    """Each command as it runs it: with a port of its own, waited for, asked, and told to stop."""
    config = yaml.safe_load((ROUTERS / "llama-swap.yaml").read_text())
    assert set(config) <= {"healthCheckTimeout", "models", "groups", "macros", "startPort", "logLevel"}
    for name, model in config["models"].items():
        port = free_port()
        command = shlex.split(model["cmd"].replace("${PORT}", str(port)))
        assert command[:2] == ["pyskip", "serve"]
        served = re.sub(r"^(?:[\w-]+=)?demo$", f"{name}={tiny}", command[2])
        flags = [
            "off" if before == "--skip" else flag for before, flag in zip(["", *command[3:]], command[3:], strict=False)
        ]
        with program(sys.executable, "-m", "pyskip", "serve", served, *flags, "-t", "1") as process:
            assert model["checkEndpoint"] == "/health"
            wait_until(partial(answers, f"http://127.0.0.1:{port}"))
            answer = httpx.post(f"http://127.0.0.1:{port}{CHAT}", json={**SHORT, "model": name})
            assert answer.status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def test_kubernetes() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    documents = list(yaml.safe_load_all((ROUTERS / "kubernetes.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["Deployment", "Service", "HorizontalPodAutoscaler"]
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    (container,) = documents[0]["spec"]["template"]["spec"]["containers"]
    grace = float(container["args"][container["args"].index("--grace") + 1])
    assert documents[0]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > grace
    documents[0]["spec"]["template"]["spec"]["containers"][0]["port"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(documents[0], kubernetes_validate.latest_version(), strict=True)


def test_systemd_units_are_sound(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze (Debian: apt-get install systemd)")
    for unit in ROUTERS.glob("pyskip-*"):
        text = unit.read_text().replace("/opt/pyskip/bin/pyskip", "/bin/true").replace("/usr/bin/curl", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    units = [str(tmp_path / unit.name) for unit in ROUTERS.glob("pyskip-*")]
    assert len(units) == 3
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "pyskip" in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_socket_activation(tiny: Path, tmp_path: Path) -> None:
    """systemd's own two programs: one listens and starts the other with the first connection, which passes it on."""
    activate = shutil.which("systemd-socket-activate")
    if not activate or not PROXYD.exists():
        pytest.skip("no systemd-socket-activate and systemd-socket-proxyd (Debian: apt-get install systemd)")
    path, port = tmp_path / "server.sock", free_port()
    with at_socket(tiny, path):
        wait_until(lambda: is_ready(path))
        with program(activate, "-l", f"127.0.0.1:{port}", str(PROXYD), str(path), stderr=subprocess.DEVNULL):
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: answers(url))
            assert httpx.post(url + CHAT, json=SHORT, timeout=60).status_code == 200
            with httpx.stream("POST", url + CHAT, json={**ENDLESS, "max_tokens": 50}, timeout=60) as stream:
                assert sum(line.startswith("data: {") for line in stream.iter_lines()) > 20
