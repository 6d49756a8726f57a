"""One real Prefect server for the suite, and processes that are seen to end."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before anything imports Prefect: the user's own home and profile are none of the tests' business.
_home = tempfile.TemporaryDirectory(prefix="maskmill-test-prefect-")
for name in [name for name in os.environ if name.startswith("PREFECT_")]:
    del os.environ[name]
os.environ["PREFECT_HOME"] = _home.name
from flows.server.environment import PRIVATE, QUIET, set_defaults  # noqa: E402

set_defaults(PRIVATE, QUIET)
HERE = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402
import yaml  # noqa: E402
from zygote import Zygote  # noqa: E402

from flows.registry import FLOWS, PLUG_INS  # noqa: E402
from flows.server import serve  # noqa: E402
from flows.server.home import Home  # noqa: E402
from tasks.engine.children import Supervisor  # noqa: E402

SLOW = "slow_flow:ENTRY"
"""The flow ``slow`` for ``MASKMILL_FLOWS``."""


def with_slow() -> str:
    """``MASKMILL_FLOWS`` with ``slow`` added."""
    others = [one for one in os.environ.get(PLUG_INS, "").split(",") if one not in ("", SLOW)]
    return ",".join([*others, SLOW])


def eventually(seconds: float, question: Callable[[], Any], what: str) -> Any:
    """The first true answer; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := question():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


@dataclass
class Started:
    """A process of ours, and how it ends."""

    zygote: Zygote
    pid: int
    output: Path
    begun: Path

    @property
    def printed(self) -> str:
        texts = [Path(f"{self.output}{ending}").read_text() for ending in (".out", ".err")]
        return " ".join("".join(texts).split())

    def wait(self, timeout_s: float = 60.0) -> int:
        return self.zygote.wait(self.pid, timeout_s)

    def wait_for_work(self, lines: int = 1, word: str = "") -> set[psutil.Process]:
        """Until ``lines`` pieces of work (whose lines hold ``word``) have begun; all processes below it."""

        def enough() -> bool:
            assert psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE, f"ended: {self.printed}"
            return self.begun.exists() and sum(word in line for line in self.begun.read_text().splitlines()) >= lines

        eventually(240, enough, f"{lines} pieces of work begun")
        return self.family()

    def family(self) -> set[psutil.Process]:
        return set(psutil.Process(self.pid).children(recursive=True))

    def end(self, number: int, within_s: float = 5.0) -> int:
        """Send the signal; the exit code. Fails if it lasts, or if a child is left."""
        family = self.family()
        os.kill(self.pid, number)
        code = self.wait(within_s)
        _, left = psutil.wait_procs(family, timeout=0.5)
        assert not left, f"children left: {left}"
        return code


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Forks processes that have imported all that the command needs."""
    paths = [HERE, HERE.parent]
    flows = [entry.module for entry in FLOWS.values()]
    with Zygote(["slow_cli", "slow_flow", *flows, "flows.server.serve", "prefect.flow_engine"], paths) as found:
        yield found


@pytest.fixture
def slow_is_a_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """``slow`` is in the registry of this process and of those that it starts."""
    monkeypatch.setenv(PLUG_INS, with_slow())


@pytest.fixture
def start(zygote: Zygote, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Starts ``maskmill`` (with the flow ``slow``) with arguments and environment."""
    started: list[Started] = []

    def run(*arguments: str, **env: str) -> Started:
        output, begun = tmp_path / f"output{len(started)}", tmp_path / f"begun{len(started)}"
        env = {"MASKMILL_TEST_COUNT": str(begun), PLUG_INS: with_slow(), **env}
        pid = zygote.start("slow_cli:forked", arguments, env=env, output=output)
        started.append(Started(zygote, pid, output, begun))
        return started[-1]

    yield run
    for one in started:
        with suppress(psutil.NoSuchProcess):
            family = one.family()
            psutil.Process(one.pid).kill()
            one.wait()
            psutil.wait_procs(family, timeout=5)


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Writes ``NAME.yaml`` of the flow ``slow`` over a folder of pictures with these names."""

    def write(name: str, pictures: tuple[str, ...] = ("a", "b", "c"), workers: int = 2, **params: Any) -> Path:
        folder = tmp_path / f"{name}-data"
        (folder / "images").mkdir(parents=True)
        for number, picture in enumerate(pictures):
            cv2.imwrite(str(folder / "images" / f"{picture}.png"), np.full((4, 5, 3), number, np.uint8))
        rows = "".join(f"{picture},thing\n" for picture in pictures)
        (folder / "tags.csv").write_text("image,tags\n" + rows)
        for split in ("train", "val"):
            (folder / f"{split}.txt").write_text("\n".join(pictures) + "\n")
        config = {
            "flow": "slow",
            "data": {"source": f"folder:{folder}", "train_on_val": True},
            "params": params,
            "options": {"cache": str(tmp_path / f"{name}-cache"), "workers": workers},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@dataclass(frozen=True)
class Server:
    """The suite's server: its clients' environment, its home."""

    env: dict[str, str]
    home: Path

    @property
    def url(self) -> str:
        return self.env["PREFECT_API_URL"]

    @property
    def auth(self) -> str:
        return self.env["PREFECT_API_AUTH_STRING"]

    @property
    def client_env(self) -> dict[str, str]:
        """For processes that use the server: they must not write into its home."""
        return {name: self.env[name] for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")}

    def settings(self) -> Any:
        """Within: this process's flows report there."""
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        return temporary_settings({PREFECT_API_URL: self.url, PREFECT_API_AUTH_STRING: self.auth})

    def client(self) -> Any:
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.url, auth_string=self.auth)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Started as ``maskmill serve`` starts its own, with a scheduler that looks every second."""
    home = Home.open(tmp_path_factory.mktemp("server") / "home")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ExitStack() as stack:
        supervisor = stack.enter_context(Supervisor())
        quick = {
            "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
        }
        _, env = serve.start_server(supervisor, home, port, ui=False, extra=quick)
        yield Server(env, home.path)
