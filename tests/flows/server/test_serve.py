"""Does ``maskmill serve`` run what is due, put right what it left behind, and end without leaving anything?"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import io
import socket
import stat
import typing
import urllib.error
import urllib.request
import zoneinfo
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from flow_servers import Server
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console

from artifacts.datasets import DataParams
from artifacts.datasets.read import placed
from flows.config import ConfigError, build, merge, parse_set, parse_yaml
from flows.registry import FLOWS, SHIPPED
from flows.server import serve
from flows.server.home import Home
from flows.server.serve_runner import build as build_deployment
from tasks.engine.runner import RunParams

pytestmark = pytest.mark.usefixtures("slow_is_a_flow")
WriteConfig = Callable[..., Path]


# -- safe settings ---------------------------------------------------------------------------------------------------


def answer(url: str, auth: str | None = None, **headers: str) -> Any:
    import base64

    if auth:
        headers["Authorization"] = "Basic " + base64.b64encode(auth.encode()).decode()
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10)


@pytest.mark.server
def test_the_server_asks_for_the_password_listens_on_loopback_and_lets_no_other_page_in(server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        answer(f"{server.url}/admin/version")
    with answer(f"{server.url}/admin/version", server.auth) as granted:
        assert granted.status == 200
    own = server.url.removesuffix("/api")
    with answer(f"{server.url}/health", Origin="http://evil.example") as foreign:
        assert "access-control-allow-origin" not in foreign.headers
    with answer(f"{server.url}/health", Origin=own) as friend:
        assert friend.headers["access-control-allow-origin"] == own
    port = int(own.rpartition(":")[2])
    listening = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    assert listening == {"127.0.0.1"}
    with answer(f"{server.url}/admin/settings", server.auth) as settings:
        defaults = yaml.safe_load(settings.read())
    assert defaults["server"]["analytics_enabled"] is False
    assert defaults["server"]["concurrency"]["lease_storage"].endswith("filesystem")
    assert defaults["results"]["default_serializer"] == "json"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (server.home, server.home / "auth")}
    assert modes == {"home": 0o700, "auth": 0o600}


def test_password_and_name_are_made_once_and_an_open_home_is_refused(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "a" / "home")
    assert (home.auth, home.owner) == (home.auth, Home.open(home.path).owner)
    assert home.auth.startswith("maskmill:") and len(home.auth) > 30
    home.path.chmod(0o750)
    with pytest.raises(ConfigError, match="must be private"):
        Home.open(home.path)


# -- refused before anything starts ----------------------------------------------------------------------------------


def serving(tmp_path: Path, *configs: Path | str, schedule: serve.Schedule = serve.Schedule(), **more: Any) -> int:
    given = {"home": tmp_path / "home", "port": 1, "server": True, "console": Console(file=io.StringIO()), **more}
    return serve.serve([str(config) for config in configs], schedule, **given)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (serve.Schedule("0 2 * *"), '--cron "0 2 \\* \\*":'),
        (serve.Schedule("0 2 * * *", timezone="Mars/Base"), "no such time zone"),
        (serve.Schedule("0 2 * * *", 60), "give one of them"),
        (serve.Schedule(interval=0.5), "at least 1 second"),
    ],
)
def test_a_wrong_schedule_is_refused(
    tmp_path: Path, write_config: WriteConfig, schedule: serve.Schedule, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        serving(tmp_path, write_config("a"), schedule=schedule)
    assert not (tmp_path / "home").exists()


def test_a_wrong_config_is_refused_before_anything_starts(tmp_path: Path, write_config: WriteConfig) -> None:
    good = write_config("a")
    same = tmp_path / "other" / "a.yaml"
    same.parent.mkdir()
    same.write_text(good.read_text())
    flowless = tmp_path / "b.yaml"
    flowless.write_text("data: {source: demo}\n")
    for configs, message in (
        ((), "nothing to serve"),
        ((good, same), "two configurations are called 'a'"),
        ((flowless,), "does not say which flow .* give --flow NAME"),
        ((write_config("c", paces=1),), "did you mean 'pace'"),
        ((tmp_path / "absent.yaml",), "No such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            serving(tmp_path, *configs)
    with pytest.raises(ConfigError, match="there is no flow 'slwo'"):
        serving(tmp_path, flowless, flow="slwo")
    with pytest.raises(ConfigError, match="--no-server: no Prefect API"):
        serving(tmp_path, good, server=False)
    assert not (tmp_path / "home").exists()


def test_a_taken_port_and_a_second_serve_are_refused(tmp_path: Path, write_config: WriteConfig) -> None:
    import socket

    config = write_config("a")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="Give --port"):
            serving(tmp_path, config, port=taken.getsockname()[1])
    with serve.hold(tmp_path / "home" / "serve.lock"), pytest.raises(ConfigError, match="another `maskmill serve`"):
        serving(tmp_path, config)


def test_a_deployment_holds_the_whole_config_with_absolute_paths(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config("a", pace={"level": 7})
    relative = yaml.safe_load(config.read_text())
    relative["data"]["source"], relative["options"]["cache"] = "folder:a-data", "a-cache"
    config.write_text(yaml.safe_dump(relative))
    monkeypatch.chdir(config.parent)
    (item,) = serve.prepare(["a.yaml"], serve.Schedule("0 2 * * *", timezone="Europe/Berlin"))
    assert (item["name"], item["flow"], item["cron"]) == ("a", "slow_flow:slow", "0 2 * * *")
    parameters = item["parameters"]
    assert parameters["params"] == {"stage": "sleepy", "pace": {"level": 7}, "fit": False}
    assert parameters["data"]["source"] == f"folder:{config.parent}/a-data"
    assert parameters["options"]["cache"] == f"{config.parent}/a-cache" and parameters["options"]["rerun"] == []
    coco = DataParams(source="coco:x,y.json")
    there = str(config.parent)
    assert placed(coco, there).source == f"coco:{config.parent}/x,{config.parent}/y.json"
    assert placed(DataParams(source="demo-tiny", aux=coco), there) == DataParams("demo-tiny", aux=placed(coco, there))
    assert placed(DataParams("voc:x", sbd="/y"), there) == DataParams(f"voc:{config.parent}/x", sbd="/y")
    found = placed(DataParams("yolo:x,y", corrections="c", scribble_files="s.json"), there)
    whole = f"yolo:{config.parent}/x,{config.parent}/y"
    assert found == DataParams(whole, corrections=f"{config.parent}/c", scribble_files=f"{config.parent}/s.json")


def test_an_api_that_does_not_answer_is_one_line_before_anything_starts(
    tmp_path: Path, write_config: WriteConfig
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/api"
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(ConfigError, match=f"{url}: no answer .*Connection refused.*unset PREFECT_API_URL"),
    ):
        serving(tmp_path, write_config("a"), server=None)
    assert not (tmp_path / "home").exists()


ZONE = next(Path(place) for place in zoneinfo.TZPATH if Path(place, "Europe/Berlin").is_file())


@pytest.mark.parametrize(
    ("given", "link", "text", "expected"),
    [
        ("Europe/Berlin", None, None, "Europe/Berlin"),
        (":Europe/Berlin", "UTC", None, "Europe/Berlin"),
        (f":{ZONE}/Asia/Tokyo", "UTC", None, "Asia/Tokyo"),
        ("", "Asia/Kolkata", None, "Asia/Kolkata"),
        ("", b"Asia/Kathmandu", "Asia/Kathmandu\n", "Asia/Kathmandu"),
        ("", b"Pacific/Chatham", None, "Pacific/Chatham"),
        ("", b"no zone", "nonsense", "UTC"),
        ("", None, None, "UTC"),
        ("CET-1CEST", "UTC", None, None),
    ],
)
def test_the_time_zone_of_this_machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: str,
    link: str | bytes | None,
    text: str | None,
    expected: str | None,
) -> None:
    """``link``: what /etc/localtime points to, or, as bytes, the zone whose file was mounted there."""
    monkeypatch.setenv("TZ", given)
    for name in ("LOCALTIME", "TIMEZONE"):
        monkeypatch.setattr(serve, name, tmp_path / name)
    if isinstance(link, str):
        (tmp_path / "LOCALTIME").symlink_to(ZONE / link)
    elif link is not None:
        source = ZONE / link.decode()
        (tmp_path / "LOCALTIME").write_bytes(source.read_bytes() if source.is_file() else link)
    if text is not None:
        (tmp_path / "TIMEZONE").write_text(text)
    if expected is None:
        with pytest.raises(ConfigError, match="TZ=CET-1CEST.*give --timezone"):
            serve.local_timezone()
        return
    found = zoneinfo.ZoneInfo(serve.local_timezone())
    moments = [datetime.datetime(2024, month, 15, 3) for month in (1, 7)]
    assert [found.utcoffset(at) for at in moments] == [zoneinfo.ZoneInfo(expected).utcoffset(at) for at in moments]


def test_a_config_without_a_flow_is_served_with_the_one_that_is_named(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config("a")
    text = yaml.safe_load(config.read_text())
    flowless = tmp_path / "b.yaml"
    flowless.write_text(yaml.safe_dump({name: value for name, value in text.items() if name != "flow"}))
    with_line, without = serve.prepare([str(config), str(flowless)], serve.Schedule(), "slow")
    assert with_line | {"name": "b", "description": "maskmill slow as in " + str(flowless)} == without


# -- parameters ------------------------------------------------------------------------------------------------------


def sections(flow: str) -> dict[str, Any]:
    """Section of a flow's configuration -> its params class."""
    return {"data": DataParams, "params": FLOWS[flow].params_class, "options": RunParams}


def places(flow: str) -> Iterator[tuple[str, ...]]:
    """Every params class of the flow, by its path in the configuration; ``data.aux`` as one of them."""

    def walk(kind: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        for name, hint in typing.get_type_hints(kind).items():
            for inner in (hint, *typing.get_args(hint)):
                if dataclasses.is_dataclass(inner) and name not in path:
                    yield from walk(inner, (*path, name))

    for section, kind in sections(flow).items():
        yield from walk(kind, (section,))


def nested(path: tuple[str, ...], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


def test_every_params_class_is_walked() -> None:
    found = set(places("cfs"))
    assert {
        ("data",),
        ("data", "aux"),
        ("params",),
        ("options",),
        ("params", "grabcut"),
        ("params", "deeplab"),
    } <= found
    assert {("params", "cfs"), ("params", "lgsa"), ("params", "deeplab", "test")} <= found


@pytest.mark.parametrize(
    ("flow", "path"), [pytest.param(f, path, id=f"{f}:{'.'.join(path)}") for f in FLOWS for path in places(f)]
)
def test_a_misspelt_name_is_refused_by_yaml_and_by_set(flow: str, path: tuple[str, ...]) -> None:
    section = path[0]
    for layer in (
        parse_yaml(yaml.safe_dump(nested(path, {"misspelt": 1})), "my.yaml"),
        parse_set([".".join((*path, "misspelt")) + "=1"]),
    ):
        merged, layers = merge([layer])
        with pytest.raises(ConfigError, match=f"{'.'.join(path)}.misspelt: no such parameter"):
            build(sections(flow)[section], section, merged, layers)


@pytest.mark.server
def test_a_misspelt_name_is_refused_by_the_api_before_a_run_exists(server: Server, flow: str) -> None:
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
    from prefect.exceptions import PrefectHTTPStatusError

    item = {"name": "checked", "flow": FLOWS[flow].entrypoint, "parameters": {"data": {"source": "demo-tiny"}}}

    async def register() -> Any:
        return await (await build_deployment(item, "test-owner")).aapply()

    with server.settings():
        deployment = asyncio.run(register())
    wrong = [nested(path, {"misspelt": 1}) for path in places(flow)]
    wrong += [
        {"misspelt": 1},
        nested(("options", "workers"), "many"),
        nested(("options", "device"), "tpu"),
    ]
    with server.client() as client:
        accepted = []
        for parameters in wrong:
            with suppress(PrefectHTTPStatusError):
                client.create_flow_run_from_deployment(deployment, parameters=parameters)
                accepted.append(parameters)
        assert accepted == []
        mine = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
        assert client.read_flow_runs(deployment_filter=mine) == []
        made = client.create_flow_run_from_deployment(deployment, parameters={"options": {"workers": 1}})
        assert made.parameters["options"] == {"workers": 1}
        client.delete_deployment(deployment)


def test_a_flow_on_its_tiny_configuration_can_be_served(
    flow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (item,) = serve.prepare([FLOWS[flow].tiny], serve.Schedule())
    assert item["parameters"]["data"]["source"] == "demo-tiny" and item["flow"] == FLOWS[flow].entrypoint
    deployment = asyncio.run(build_deployment(item, "test-owner"))
    assert deployment.flow_name == flow


def test_prefect_yaml_holds_all_flows_with_right_parameters_and_no_schedule_until_it_is_wanted() -> None:
    root = Path(__file__).parents[3]
    text = (root / "prefect.yaml").read_text()
    assert not any("schedules" in one for one in yaml.safe_load(text)["deployments"])
    deployments = yaml.safe_load(text.replace("    # schedules:", "    schedules:"))["deployments"]
    assert len({one["name"] for one in deployments}) == len(deployments)
    pools: dict[str, set[str]] = {}
    for nightly in deployments:
        file, _, function = nightly["entrypoint"].partition(":")
        (name,) = (name for name, entry in FLOWS.items() if entry.entrypoint.endswith(f":{function}"))
        module = file.removesuffix(".py").replace("/", ".")
        assert (root / file).exists() and FLOWS[name].entrypoint == f"{module}:{function}"
        merged, layers = merge([parse_yaml(yaml.safe_dump(nightly["parameters"]), "prefect.yaml")])
        built = {section: build(kind, section, merged, layers) for section, kind in sections(name).items()}
        fits = getattr(built["params"], "student", "") != "none"
        assert nightly["work_pool"]["name"] == ("mill-gpu" if fits else "mill-cpu")
        pools.setdefault(nightly["work_pool"]["name"], set()).add(name)
        assert nightly["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
        for schedule in nightly["schedules"]:
            serve.check_schedule(serve.Schedule(schedule["cron"], timezone=schedule["timezone"]))
    assert pools == {"mill-cpu": {"cfs"}, "mill-gpu": {entry.name for entry in SHIPPED}}
