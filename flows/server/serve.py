"""``maskmill serve``: configurations as scheduled flows, with a Prefect server of this user's own unless there is one.

Processes: this one (plain: signals, order of starting and ending), the server, and the runner
(``flows/server/serve_runner.py``) that starts a process per flow run. The two are children that die with this one;
Ctrl-C reaches only this one, which then cancels the runs before it ends the rest.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
import zoneinfo
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape

from artifacts.cache.locks import LockTaken, hold
from artifacts.datasets.read import placed
from flows.config import ConfigError, merge, read_layers
from flows.configure import configure, load
from flows.registry import FLOWS
from flows.run_flow import plan_page, read_sets
from flows.server.environment import SERVED, api_configured, server_settings
from flows.server.home import USER, Home
from tasks.engine.children import Child, Stopped, Supervisor

HEALTH_S = 600.0
"""For the server's first answer: 10 s on an idle machine with a new database, minutes on a busy one (seen)."""
REACH_S = 10.0
"""For a configured API to answer."""
END_S = 15.0
"""For the runner to cancel its runs, and 5 s more for each deployment."""


@dataclass(frozen=True)
class Schedule:
    """When the served flows run: a cron line in a time zone, every so many seconds, or only on demand."""

    cron: str | None = None
    interval: float | None = None
    timezone: str = "UTC"

    def __str__(self) -> str:
        if self.cron:
            return f"cron {self.cron} ({self.timezone})"
        return f"every {self.interval:g} s" if self.interval else "on demand"


# -- what is served: checked before anything starts ------------------------------------------------------------------


def prepare(configs: Sequence[str], schedule: Schedule, flow: str | None = None) -> list[dict[str, Any]]:
    """The deployments of ``configs`` as plain data. Raises :class:`ConfigError` and ``DataError``.

    ``flow``: of the configurations without a line ``flow: NAME``.
    """
    if not configs:
        raise ConfigError(f"nothing to serve: name YAML files or shipped configurations, e.g. `{USER} serve demo-tiny`")
    check_schedule(schedule)
    found: dict[str, dict[str, Any]] = {}
    for config in configs:
        item = deployment(config, schedule, flow)
        if item["name"] in found:
            raise ConfigError(
                f"two configurations are called {item['name']!r}; a deployment is named after its file, rename one"
            )
        found[item["name"]] = item
    return list(found.values())


def deployment(config: str, schedule: Schedule, flow: str | None = None) -> dict[str, Any]:
    """One configuration as a deployment: its validated values as parameters, data and options with absolute paths."""
    flow = merge(read_layers(config))[0].get("flow", flow)
    if flow is None or flow not in list(FLOWS):  # a list: YAML may give what cannot be hashed
        known = ", ".join(FLOWS)
        what = "does not say which flow it is for" if flow is None else f"there is no flow {flow!r}"
        raise ConfigError(f"config {config}: {what}: write a line `flow: NAME`, or give --flow NAME (one of {known})")
    job = configure(flow, None, config, (), {})
    page, _, _ = load(flow)
    plan_page(flow, page, read_sets(job.data, job.options), job.params, job.options)
    options = replace(
        job.options,
        cache=os.path.abspath(job.options.cache),
        out=os.path.abspath(job.options.out) if job.options.out else "",
    )
    sections = {"data": placed(job.data, os.getcwd()), "params": job.params, "options": options}
    return {
        "name": Path(config).stem,
        "flow": FLOWS[flow].entrypoint,
        "parameters": {name: plain(value) for name, value in sections.items()},
        "description": f"maskmill {flow} as in {config}",
        "cron": schedule.cron,
        "interval": schedule.interval,
        "timezone": schedule.timezone,
    }


def plain(params: object) -> Any:
    """A params object as JSON values."""
    return TypeAdapter(type(params)).dump_python(params, mode="json")


def check_schedule(schedule: Schedule) -> None:
    """Raises :class:`ConfigError` that describes the fault."""
    from prefect.client.schemas.schedules import CronSchedule

    if schedule.cron is not None and schedule.interval is not None:
        raise ConfigError("--cron and --interval: give one of them")
    if schedule.interval is not None and schedule.interval < 1:
        raise ConfigError(f"--interval {schedule.interval:g}: must be at least 1 second")
    if schedule.timezone not in zoneinfo.available_timezones():
        raise ConfigError(f"--timezone {schedule.timezone}: no such time zone; a name like Europe/Berlin or UTC")
    if schedule.cron is not None:
        try:
            CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
        except ValidationError as error:
            raise ConfigError(
                f'--cron "{schedule.cron}": {error.errors()[0]["msg"]}; every night at two is "0 2 * * *"'
            ) from None


def local_timezone() -> str:
    """This machine's time zone by name; UTC if it has none.

    ``TZ`` decides (``Europe/Berlin``, ``:Europe/Berlin`` or a file), then the link ``/etc/localtime``; where that is a
    file (mounted into a container), ``/etc/timezone``, or the zone whose rules are the file's. Raises
    :class:`ConfigError` for a ``TZ`` that names no zone: a schedule in another one would run at a wrong hour.
    """
    known = zoneinfo.available_timezones()
    if given := os.environ.get("TZ", "").removeprefix(":"):
        name = given.rpartition("zoneinfo/")[2]
        if name not in known:
            raise ConfigError(f"TZ={given}: no time zone by name; give --timezone, a name like Europe/Berlin or UTC")
        return name
    name = os.path.realpath(LOCALTIME).partition("zoneinfo/")[2]
    if name in known:
        return name
    with suppress(OSError, UnicodeDecodeError):
        if (name := TIMEZONE.read_text().strip()) in known:
            return name
    with suppress(OSError):
        rules = LOCALTIME.read_bytes()
        files = (Path(place, name) for place in zoneinfo.TZPATH for name in sorted(known))
        if found := next((path for path in files if path.is_file() and path.read_bytes() == rules), None):
            return str(found).partition("zoneinfo/")[2]
    return "UTC"


LOCALTIME, TIMEZONE = Path("/etc/localtime"), Path("/etc/timezone")


# -- the server ------------------------------------------------------------------------------------------------------


def start_server(
    supervisor: Supervisor,
    home: Home,
    port: int,
    *,
    ui: bool = True,
    extra: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
) -> tuple[Child, dict[str, str]]:
    """Start a server on loopback and wait until it answers. Returns it and the environment of its clients.

    Raises :class:`ConfigError` if the port is taken, ``RuntimeError`` if the server does not come up, ``Stopped``.
    """
    require_free(port)
    env = {**server_settings(str(home.path), port, home.auth), **(extra or {})}
    log_file = home.path / "server.log"
    log_file.unlink(missing_ok=True)
    log_file.touch(0o600)
    child = supervisor.start_lines(
        [sys.executable, "-m", "prefect", "server", "start", "--ui" if ui else "--no-ui"],
        on_line=lambda line: None,
        env=env,
        log_file=log_file,
    )
    wait_healthy(child, f"http://127.0.0.1:{port}/api/health", log_file, stop or threading.Event())
    return child, env


def require_free(port: int) -> None:
    """Raises :class:`ConfigError` if something listens on ``port`` already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"port {port}: {error.strerror}; another server? Give --port, or PREFECT_API_URL to use that server"
            ) from error


def check_api() -> None:
    """Raises :class:`ConfigError` if the configured API does not answer: the runner's own error is 97 lines long."""
    from prefect.settings import get_current_settings

    url = str(get_current_settings().api.url)
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=REACH_S):
            return
    except urllib.error.HTTPError:
        return  # an answer: it may want a password, which Prefect's client knows
    except (OSError, ValueError) as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            return  # Prefect's client may have a certificate of its own
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"PREFECT_API_URL {url}: no answer ({getattr(reason, 'strerror', None) or reason}); start that server, or"
            " unset PREFECT_API_URL (and the profile's) to have a server started here"
        ) from error


def wait_healthy(server: Child, url: str, log_file: Path, stop: threading.Event) -> None:
    """Until ``url`` answers. Raises ``RuntimeError`` with the end of the server's log, or ``Stopped``."""
    deadline = time.monotonic() + HEALTH_S
    while not server.exited.is_set() and time.monotonic() < deadline:
        if stop.is_set():
            raise Stopped("stopped while the server started")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    how = f"ended with {server.returncode}" if server.exited.is_set() else f"did not answer within {HEALTH_S:g} s"
    raise RuntimeError(f"the Prefect server {how} (log: {log_file}): {server.error_tail[-1000:]}")


# -- all of it -------------------------------------------------------------------------------------------------------


def serve(
    configs: Sequence[str],
    schedule: Schedule,
    *,
    home: Path,
    port: int,
    server: bool | None,
    console: Console,
    flow: str | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; the exit code (0 after a signal, 1 if a part ended by itself).

    ``server``: start one; ``None``: unless an API is configured. ``flow``: as for :func:`prepare`.
    """
    own = not api_configured() if server is None else server
    if not own and not api_configured():
        raise ConfigError("--no-server: no Prefect API is configured; set PREFECT_API_URL, or let serve start a server")
    if not own:
        check_api()
    deployments = prepare(configs, schedule, flow)
    place = Home.open(home)
    try:
        with hold(place.path / "serve.lock", wait=False), _signals() as stop, Supervisor() as supervisor:
            return _serve(deployments, schedule, place, port if own else None, supervisor, stop, console)
    except Stopped:
        return 0
    except LockTaken as error:
        raise ConfigError(f"--home {place.path}: another `{USER} serve` uses it ({error})") from error


def _serve(
    deployments: Sequence[dict[str, Any]],
    schedule: Schedule,
    home: Home,
    port: int | None,
    supervisor: Supervisor,
    stop: threading.Event,
    console: Console,
) -> int:
    env: dict[str, str] = {}
    parts: dict[str, Child] = {}
    if port is not None:
        console.print(f"starting a Prefect server on 127.0.0.1:{port} ...")
        parts["server"], env = start_server(supervisor, home, port, stop=stop)
        exports = "".join(f"export {name}='{env[name]}'\n" for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"))
        home.write("env", exports)
    spec = home.write("serve.json", json.dumps({"owner": home.owner, "deployments": deployments}, indent=1))
    runner = parts["runner"] = supervisor.start_lines(
        [sys.executable, "-m", "flows.server.serve_runner", str(spec)],
        on_line=lambda line: _relay(line, console, home, port, schedule),
        env={**SERVED, "PREFECT_LOGGING_LEVEL": "INFO", **env},
    )
    while not stop.wait(0.2):
        for name, child in parts.items():
            if child.exited.is_set():
                console.print(f"[red]the {name} ended by itself[/] (exit code {child.returncode}); ending the rest")
                _end(parts, len(deployments))
                return 1
    console.print("stopping: cancelling runs, then the server ...")
    _end(parts, len(deployments))
    return 0 if runner.returncode == 0 else 1


def _relay(line: str, console: Console, home: Home, port: int | None, schedule: Schedule) -> None:
    """One line of the runner: an event for the console, or log."""
    if not line.startswith('{"maskmill"'):
        sys.stderr.write(line + "\n")
        return
    event = json.loads(line)
    for name in event["stale"]:
        console.print(f"[yellow]{escape(name)} was left running by an earlier serve: set to Crashed[/]")
    for name in event["deployments"]:
        console.print(f"serving [bold]{escape(name)}[/], {escape(str(schedule))}", soft_wrap=True)
    if port is not None:
        login = f"user {USER}; log in with what `cat {home.path / 'auth'}` prints"
        console.print(f"UI: http://127.0.0.1:{port} ({login})", highlight=False, soft_wrap=True)
        shell = f"in a shell: . {home.path / 'env'}; prefect flow-run ls --state-type RUNNING"
        console.print(shell, highlight=False, soft_wrap=True)
    console.print(f"run one now: prefect deployment run '{event['deployments'][0]}'", highlight=False, soft_wrap=True)


def _end(parts: Mapping[str, Child], deployments: int) -> None:
    """End the runner first: it cancels its runs through the server, which must still run."""
    runner = parts.get("runner")
    if runner is not None and not runner.exited.is_set():
        os.kill(runner.pid, signal.SIGTERM)  # not to its process tree: the runner cancels its own runs
        runner.exited.wait(END_S + 5.0 * deployments)
        runner.terminate()
    if (server := parts.get("server")) is not None:
        server.terminate(grace_s=5.0)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Within: SIGTERM and SIGINT set the event (also if this was started with SIGINT ignored, by a script's ``&``)."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
