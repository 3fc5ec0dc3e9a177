"""Replicas and evaluations on Ray (pyskip[ray]): what is said to Ray without it, and where it is installed, the
whole."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from conftest import ROOT
from evaluations import Run, story
from serving import free_port

from pyskip.cli.main import run
from pyskip.errors import PyskipError
from pyskip.ray.application import Settings, by_load
from pyskip.ray.conversation import conversation
from pyskip.ray.cores import Claim, running_on

CHAT = "/v1/chat/completions"
HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install 'pyskip[ray]'")


# Which requests belong together


def key(body: Any, **headers: str) -> str:
    return conversation({name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(body).encode())


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_later_turns_have_the_key_of_the_first() -> None:
    first = [turn("system", "Be brief."), turn("user", "Are dogs real?")]
    later = [*first, turn("assistant", "Yes."), turn("user", "And cats?")]
    other = [turn("system", "Be brief."), turn("user", "Are cats real?"), *later[2:]]
    for name in ("messages", "input"):
        assert key({name: first}) == key({name: later, "temperature": 1, "stream": True})
        assert key({name: first}) != key({name: other})
        assert key({name: first, "system": "a"}) != key({name: first, "system": "b"})
    assert key({"input": "Are dogs real?"}) == key(
        {"input": [turn("user", "Are dogs real?"), turn("assistant", "Yes.")]}
    )


def test_a_client_can_name_its_conversation() -> None:
    body = {"messages": [turn("user", "Hi")]}
    assert key(body, x_session_id="mine") == "mine"
    assert key({**body, "prompt_cache_key": "mine"}) == "mine"
    assert key({"prompt": "Hi", "prompt_cache_key": 7}) == "7"


@pytest.mark.parametrize("body", [{"prompt": "Hi"}, {}, [], "text", None, {"messages": []}, {"messages": {"a": 1}}])
def test_what_is_no_conversation_has_no_key(body: Any) -> None:
    assert key(body) == ""


def test_what_is_no_json_has_no_key() -> None:
    assert [conversation({}, body) for body in (b"", b"\xff", b"{", b"[" * 100_000)] == [""] * 4
    assert key({"messages": [turn("assistant", "a"), 7, None]})


# Cores


def test_replicas_of_a_machine_share_no_core(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    claims = [Claim(1, tmp_path) for _ in allowed]
    assert sorted(core for claim in claims for core in claim.cores) == sorted(allowed)
    assert Claim(1, tmp_path).cores == frozenset()
    claims[0].close()
    assert Claim(2, tmp_path).cores == frozenset()
    again = Claim(1, tmp_path)
    assert again.cores == claims[0].cores
    for claim in (*claims, again):
        claim.close()
    whole = Claim(len(allowed), tmp_path)
    assert whole.cores == allowed
    whole.close()


def test_a_child_runs_on_the_cores_and_this_process_goes_on_as_it_was(tmp_path: Path) -> None:
    before, claim = os.sched_getaffinity(0), Claim(1, tmp_path)
    with running_on(claim.cores):
        told = subprocess.run(
            [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], capture_output=True, text=True
        ).stdout
    assert told.strip() == str(set(claim.cores))
    assert os.sched_getaffinity(0) == before
    with running_on(frozenset()):
        assert os.sched_getaffinity(0) == before
    claim.close()


# What the application is told


def test_settings_of_a_file_and_of_a_command_line() -> None:
    told = Settings.read({"model": "m.gguf", "flags": "--skip 0.25 -- --no-warmup", "cores": "2", "replicas": 3})
    assert told == Settings("m.gguf", ("--skip", "0.25", "--", "--no-warmup"), cores=2, replicas=3)
    command = told.command()
    assert command[:3] == ["m.gguf", "-t", "2"]
    assert command[command.index("--") :] == ["--", "--no-warmup", "--parallel", "4"]
    assert Settings.read({"flags": ["--skip", "off"]}).command()[-3:] == ["--", "--parallel", "4"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"modle": "demo"}, "no argument 'modle', expected cores, flags,"),
        ({"cores": 0}, "cores is 0, expected a whole number from 1 on"),
        ({"replicas": "many"}, "replicas is 'many'"),
        ({"slots": True}, "slots is True"),
        ({"slots": 1.5}, "slots is 1.5"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas is 2, expected at least 3"),
    ],
)
def test_settings_that_are_wrong(args: dict[str, Any], said: str) -> None:
    with pytest.raises(PyskipError, match=said):
        Settings.read(args)


def test_mistakes_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "serve.yaml"
    for content, said in (
        (None, "No such file"),
        ("a: [", "expected a configuration"),
        ("a: 1", "found no applications"),
    ):
        if content is not None:
            file.write_text(content)
        assert run(["serve", "--ray", str(file)]) == 1
        assert said in capsys.readouterr().err
    for more in (["demo"], ["--skip", "0.25"], ["--", "--parallel", "2"]):
        assert run(["serve", "--ray", str(file), *more]) == 2
        assert "only --host and --port go with it" in capsys.readouterr().err


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text(story(20))
    for args in (
        ["serve", "--ray", "examples/ray/serve.yaml"],
        ["eval", str(tiny), "--text", str(tmp_path / "text"), "--ray"],
    ):
        assert run(args) == 1
        assert "pip install 'pyskip[ray]'" in capsys.readouterr().err


# Replicas


def replicas() -> list[int]:
    """Process ids of those that run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (
                b"ray::ServeReplica:" in (process / "cmdline").read_bytes()
                and b":Replica" in (process / "cmdline").read_bytes()
            ):
                found.append(int(process.name))
    return found


class Cluster:
    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url
        limits = httpx.Limits(max_connections=None)
        self.client = httpx.Client(base_url=url, timeout=120, verify=False, limits=limits)

    def ask(self, messages: list[dict[str, str]], **more: Any) -> httpx.Response:
        body = {"messages": messages, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **more}
        return self.client.post(CHAT, json=body)


@contextmanager
def cluster(folder: Path, model: Path, through: str, **args: Any) -> Iterator[Cluster]:
    """through: "front", pyskip's own before replicas of one machine, or "proxy", Ray's."""
    port = free_port()
    config = yaml.safe_load((ROOT / "examples" / "ray" / "serve.yaml").read_text())
    config["applications"][0]["args"] = {"model": f"tiny={model}", "flags": ["-c", "2048"], "cores": 1, **args}
    config |= {"proxy_location": "EveryNode"} if through == "proxy" else {}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "pyskip", "serve", "--ray", str(folder / "serve.yaml"), "--port", str(port)]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env)
    watch = threading.Timer(300, process.kill)
    watch.start()
    said = ""
    assert process.stderr is not None
    for line in process.stderr:
        said += line
        if found := re.search(r" at (http://127\.0\.0\.1:\d+);", line):
            break
    else:
        pytest.fail(said)
    reader = threading.Thread(target=process.stderr.read)  # so that nothing it says ever waits
    reader.start()
    try:
        with (served := Cluster(process, found[1])).client:
            yield served
    finally:
        watch.cancel()
        process.terminate()
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail("the cluster did not end")
        finally:
            reader.join()
            process.stderr.close()


def words(seed: int, n: int = 24) -> str:
    rng = random.Random(seed)
    return " ".join(f"w{rng.randrange(200)}" for _ in range(n))


@needs_ray
@pytest.mark.loopback
@pytest.mark.slow
@pytest.mark.parametrize("through", ["front", "proxy"])
def test_two_replicas_and_one_that_dies(tiny: Path, tmp_path: Path, through: str) -> None:
    """64 clients: turns of a conversation reach the replica that holds its prompt; when a replica is killed every
    request is answered, or gets a 503 that says when to come again."""
    others = listening_elsewhere()
    with cluster(tmp_path, tiny, through, replicas=2) as served:
        assert listening_elsewhere() - others == set()
        histories = [[turn("user", f"w{i} " + words(i))] for i in range(64)]

        def talk(history: list[dict[str, str]]) -> list[bool]:
            """Whether the later turns found their prompt cached."""
            found, n_before = [], 0
            for i in range(3):
                answer = served.ask(history)
                assert answer.status_code == 200, answer.text
                document = answer.json()
                n_cached = document["usage"]["prompt_tokens_details"]["cached_tokens"]
                found += [n_cached >= n_before] if i else []
                n_before = document["usage"]["prompt_tokens"]
                history += [turn("assistant", document["choices"][0]["message"]["content"]), turn("user", words(i, 4))]
            return found

        with ThreadPoolExecutor(64) as pool:
            hits = [hit for found in pool.map(talk, histories) for hit in found]
        assert len(hits) == 128
        assert sum(hits) / len(hits) >= 0.95

        before = replicas()
        assert len(before) == 2
        statuses: Counter[int] = Counter()

        def insist(i: int) -> None:
            for _ in range(6):
                answer = served.ask([turn("user", words(1000 + i))], max_tokens=64)
                statuses[answer.status_code] += 1
                assert answer.status_code in (200, 503), answer.text
                if answer.status_code == 503:
                    assert int(answer.headers["retry-after"]) >= 1
                    assert answer.json()["error"]["code"] == "replica_gone"

        with ThreadPoolExecutor(64) as pool:
            work = [pool.submit(insist, i) for i in range(64)]
            while statuses.total() < 64:
                time.sleep(0.05)
            os.kill(before[0], signal.SIGKILL)
            for one in work:
                one.result()
        assert statuses.total() == 64 * 6
        assert 0 < statuses[503] <= 64
        end = time.monotonic() + 60
        while len(replicas()) < 2:
            assert time.monotonic() < end, "no other replica came"
            time.sleep(0.2)
        assert before[0] not in replicas()


def listening_elsewhere() -> set[str]:
    """Addresses other than the loopback's that somebody listens at."""
    done = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True)
    addresses = {line.split()[3] for line in done.stdout.splitlines()}
    return {address for address in addresses if not re.match(r"(127\.|\[::1\]|\[::ffff:127\.)", address)}


@needs_ray
@pytest.mark.loopback
@pytest.mark.slow
@pytest.mark.parametrize("through", ["front", "proxy"])
def test_streams_errors_and_an_orderly_end(tiny: Path, tmp_path: Path, through: str) -> None:
    with cluster(tmp_path, tiny, through, replicas=1, slots=1, max_body=5000) as served:
        assert served.client.get("/health").json() == {"status": "ok"}
        assert served.client.get("/v1/models").json()["data"][0]["id"] == "tiny"
        assert "text/html" in served.client.get("/").headers["content-type"]
        wrong = served.ask([turn("user", "w1")], skip="most")
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "skip")
        assert served.ask([turn("user", "w1 " * 5000)]).status_code == 413
        assert served.client.get("/health", headers={"Host": "elsewhere.test"}).status_code == 403

        body = {"messages": [turn("user", "w1 w2")], "max_tokens": 400, "ignore_eos": True, "stream": True}
        with served.client.stream("POST", CHAT, json=body) as stream:
            lines = (line for line in stream.iter_lines() if line.startswith("data: "))
            began = time.monotonic()
            next(lines)
            first, rest = time.monotonic() - began, list(lines)
        assert rest[-1] == "data: [DONE]"
        assert len(rest) > 200  # pieces of characters come as one
        assert first < (time.monotonic() - began) / 2  # it came as it was written

        with served.client.stream("POST", CHAT, json={**body, "max_tokens": 1500}) as stream:
            lines = (line for line in stream.iter_lines() if line.startswith("data: "))
            next(lines)
            os.kill(replicas()[0], signal.SIGKILL)
            last = list(lines)[-1]
        assert json.loads(last[6:])["error"]["code"] == "replica_gone"

        answer = served.ask([turn("user", "w5 w6")], max_tokens=1)  # waits for the next replica, if it must
        assert answer.status_code in (200, 503)


def test_how_many_replicas_a_load_needs() -> None:
    loads = {"load": {"a": 6.0, "b": 3.5}}
    context = SimpleNamespace(aggregated_metrics=loads, config=SimpleNamespace(target_ongoing_requests=4))
    assert by_load(context) == (9.5 / 4, {})
    assert by_load(SimpleNamespace(aggregated_metrics={}, config=context.config)) == (0, {})


@needs_ray
@pytest.mark.loopback
@pytest.mark.slow
def test_a_load_adds_a_replica(tiny: Path, tmp_path: Path) -> None:
    """Of requests that come by the front Ray hears from the replicas."""
    before = set(replicas())
    with cluster(tmp_path, tiny, "front", replicas=1, max_replicas=2, slots=1) as served, ThreadPoolExecutor(8) as pool:
        assert len(set(replicas()) - before) == 1
        end = time.monotonic() + 150

        def press(i: int) -> int:
            n = 0
            while len(set(replicas()) - before) < 2 and time.monotonic() < end:
                n += served.ask([turn("user", words(i))], max_tokens=256).status_code == 200
            return n

        assert sum(pool.map(press, range(8))) > 0
        assert len(set(replicas()) - before) == 2


# Evaluations


@needs_ray
@pytest.mark.loopback
@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_an_evaluation_over_two_workers(cli: Run, tiny: Path, tmp_path: Path, killed: bool) -> None:
    """The figures of one process, also when a worker is killed; its journal is one of --resume."""
    text, journal = tmp_path / "text.txt", tmp_path / "journal.jsonl"
    text.write_text(story(400 if killed else 60))
    command = ["eval", str(tiny), "--text", str(text), "--ctx", "64", "--skip", "static:2", "-t", "1", "--json"]

    def kill_a_worker() -> None:
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
            time.sleep(0.05)
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "cmdline").read_bytes().startswith(b"ray::score"):
                    os.kill(int(process.name), signal.SIGKILL)
                    died.append(process.name)
                    return

    died: list[str] = []
    if killed:
        threading.Thread(target=kill_a_worker, daemon=True).start()
    spread = cli(*command, "--ray", "--resume", str(journal))
    assert spread.returncode == 0, spread.stderr
    assert len(died) == killed
    alone = cli(*command)
    found, expected = (json.loads(done.stdout)["results"] for done in (spread, alone))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == {
            name: value if isinstance(value, (str, list)) else pytest.approx(value, rel=1e-6)
            for name, value in theirs.items()
        }
    again = cli(*command, "--resume", str(journal))
    assert json.loads(again.stdout)["results"] == json.loads(spread.stdout)["results"]


@needs_ray
@pytest.mark.loopback
@pytest.mark.slow
def test_items_over_workers(cli: Run, tiny: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    items: list[dict[str, Any]] = [{"context": f"the king found {i}", "continuation": "bread"} for i in range(6)]
    items += [{"query": "the sailor lost", "choices": ["bread", "a map"], "gold": i % 2} for i in range(6)]
    task.write_text("".join(json.dumps(item) + "\n" for item in items))
    command = ["eval", str(tiny), "--task", str(task), "--skip", "static:2", "-t", "1", "--json"]
    found, expected = (cli(*command, *more) for more in (["--ray"], []))
    assert json.loads(found.stdout)["results"] == json.loads(expected.stdout)["results"]


@needs_ray
@pytest.mark.loopback
@pytest.mark.slow
def test_a_calibration_over_workers(cli: Run, tiny: Path, tmp_path: Path) -> None:
    """Its sums are those of one process but for the order of adding: the fits are as good."""
    text = tmp_path / "text.txt"
    text.write_text(story(1200))
    command = ["calibrate", str(tiny), "--text", str(text), "--fit", "6", "--curve", "1", "-t", "1", "--json"]
    documents = []
    for name, more in (("spread", ["--ray"]), ("alone", [])):
        done = cli(*command, "-o", str(tmp_path / f"{name}.skip.gguf"), *more)
        assert done.returncode == 0, done.stderr
        documents.append(json.loads(done.stdout))
    spread, alone = documents
    for name in ("stand_in_r2", "gate_r2"):
        assert spread[name] == {il: pytest.approx(r2, abs=1e-3) for il, r2 in alone[name].items()}
    assert spread["n_tokens"] == alone["n_tokens"]


def test_a_calibration_that_trains_is_one_machines(cli: Run, tiny: Path) -> None:
    done = cli("calibrate", str(tiny), "--ray", "--distill", "5")
    assert done.returncode == 2
    assert "leave one out" in done.stderr
