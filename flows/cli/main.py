"""The ``maskmill`` command. Every command imports what it needs when it runs: ``--help`` answers at once.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration (nothing was computed), 3 done with skipped images,
130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import inspect
import logging
import os
import signal
import sys
import tomllib
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ClassVar, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.logging import RichHandler
from rich.markup import escape

from artifacts.records import DataError
from flows.cli.terminal import terminal
from flows.registry import FLOWS
from flows.server.environment import PRIVATE, QUIET, set_defaults
from tasks.engine.gpus import NoDevice
from tasks.engine.memory import out_of_memory

OK, FAILED, USAGE, SKIPPED = 0, 1, 2, 3
KEPT = "finished work is kept (a fit: up to its last checkpoint), the same command resumes"

app = App(
    name="maskmill",
    help="Turn weak labels (tags, boxes, scribbles) into pixel masks, a trained DeepLab and a dataset.",
    help_epilogue=(
        "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 done with skipped images,"
        " 130 and 143 stopped by SIGINT and SIGTERM."
    ),
    version=lambda: version(),
    version_flags=["--version"],
    help_format="plaintext",  # markup would swallow <image id> and [0, 1]
    suppress_keyboard_interrupt=False,  # main prints what was kept
)
log = logging.getLogger("maskmill")
made: set[str] = set()
"""Flows that are commands."""
app.command(
    "flows.cli.attention:attention", name="attention", help="Draw a student's self-attention at a pixel as a heat map."
)
app.command("flows.cli.cache:app", name="cache", help="List, inspect, check and clean up the mask cache.")
app.command("flows.cli.cam:cam", name="cam", help="Draw where a run's classifier of tags sees a class.")
app.command(
    "flows.compare.command:compare",
    name="compare",
    help="Compare variants of a flow, or flows: one table, one picture, one page.",
)
app.command("flows.cli.crf:crf", name="crf", help="Sharpen label probabilities to a mask, with a dense CRF.")
app.command(
    "flows.cli.doctor:doctor", name="doctor", help="Check this machine and a cache's file system; say what to mend."
)
app.command("flows.cli.edges:edges", name="edges", help="Draw the boundaries in pictures: HED, hed-lite, Canny.")
app.command(
    "flows.cli.score:score", name="score", help="Score masks against truth, or edge maps against drawn boundaries."
)
app.command("flows.cli.runs:app", name="runs", help="List the runs of a cache, show one, read its log, compare two.")
app.command("flows.cli.status:status", name="status", help="Say what runs now, how far it is, and how the disk is.")
app.command("flows.cli.scribbles:scribbles", name="scribbles", help="Draw plausible scribbles from masks.")
app.command(
    "flows.cli.handback:import_", name="import", help="Store masks that people corrected: every flow then prefers them."
)
app.command("flows.cli.weights:app", name="weights", help="List the pretrained weights that there are, and get them.")


class Terminated(BaseException):
    """SIGTERM, raised in the main thread so that every ``with`` ends its children."""


Source = Annotated[
    str | None,
    Parameter(name="--data", help="voc:PATH, coco:IMAGES,JSON, folder:PATH, yolo:PATH, demo or demo-tiny"),
]
Config = Annotated[
    str | None, Parameter(name="--config", help="a YAML file, or the name of a shipped one (demo, demo-tiny, ...)")
]
Sets = Annotated[
    tuple[str, ...],
    Parameter(name="--set", help="one value: params.deeplab.iterations=100; repeatable", negative=()),
]
Cache = Annotated[Path, Parameter(name="--cache", help="folder of the mask cache")]


def run_flow(
    flow: str,
    *,
    data: Source = None,
    config: Config = None,
    set_: Sets = (),
    out: Annotated[
        Path | None, Parameter(help="folder for report, pictures and exports (and the cache, unless named)")
    ] = None,
    cache: Annotated[
        Path | None, Parameter(help="folder of the mask cache; default OUT/cache or maskmill-cache")
    ] = None,
    rerun: Annotated[
        tuple[str, ...], Parameter(help="run this stage again although it is cached; repeatable", negative=())
    ] = (),
    until: Annotated[str | None, Parameter(help="stop after this stage; score, draw and export its results")] = None,
    workers: Annotated[int | None, Parameter(help="worker processes; -1: one per core, 0: none")] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "gpu"] | None, Parameter(help="where networks run (gpu is cuda); default auto")
    ] = None,
    export: Annotated[tuple[str, ...], Parameter(help="voc, coco, hdf5, label-studio, ...", negative=())] = (),
    dry_run: Annotated[bool, Parameter(help="show what would be done and the estimated time", negative=())] = False,
    show_config: Annotated[bool, Parameter(help="print the whole configuration as YAML and stop", negative=())] = False,
    prefect: Annotated[
        bool, Parameter(help="run as a Prefect flow run even if no API is configured", negative=())
    ] = False,
    quiet: Annotated[
        bool, Parameter(help="no progress bars; at the end one line of scores a set", negative=())
    ] = False,
) -> int:
    """``maskmill FLOW``, for every flow: :func:`add_flows` makes a command of it for each."""
    from flows.cli import flow_command as command

    options = {
        "out": None if out is None else str(out),
        "cache": None if cache is None else str(cache),
        "rerun": list(rerun) or None,
        "until": until,
        "workers": workers,
        "device": "cuda" if device == "gpu" else device,
        "export": list(export) or None,
        "progress": False if quiet else None,
    }
    return command.run_flow_command(
        flow,
        data=data,
        config=config,
        sets=set_,
        options=options,
        dry_run=dry_run,
        show_config=show_config,
        prefect=prefect,
    )


def command_of(flow: str, shortcut: tuple[str, str] | None) -> Callable[..., int]:
    """:func:`run_flow` of one flow; with its shortcut (option, the value that it sets) as one more option."""
    run = functools.partial(run_flow, flow)
    if shortcut is None:
        return run
    option, place = shortcut

    def command(*, shortcut: str | None = None, set_: Sets = (), **given: Any) -> int:
        return run(set_=(*set_, *([] if shortcut is None else [f"{place}={shortcut}"])), **given)

    kind = Annotated[str | None, Parameter(name=option, help=f"as --set {place}=...")]
    own = inspect.Parameter("shortcut", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
    shared = [one for name, one in inspect.signature(run, eval_str=True).parameters.items() if name != "flow"]
    command.__signature__ = inspect.Signature([*shared, own], return_annotation=int)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in (*shared, own)}
    return command


def add_flows() -> None:
    """A command for each flow of the registry, that of ``MASKMILL_FLOWS`` included."""
    for name, entry in FLOWS.items():
        if name not in app:
            app.command(command_of(name, entry.shortcut), name=name, help=entry.help, sort_key=-1)
            made.add(name)
        elif name not in made:
            raise DataError(f"the flow {name!r} cannot be run: a command of maskmill has this name")


@app.command
def export(
    *,
    to: Annotated[Path, Parameter(help="folder to make; an unchanged earlier export there is replaced, nothing else")],
    format_: Annotated[
        str,
        Parameter(
            name="--format",
            help="voc, voc-server, coco, hdf5, yolo-seg; for people: label-studio, cvat, labelme, these with -polygons",
        ),
    ] = "voc",
    cache: Cache = Path("maskmill-cache"),
    run: Annotated[str, Parameter(help="a run's id, or latest")] = "latest",
    stage: Annotated[
        str, Parameter(help="label of a complete stage; default: the run's masks, or its last complete ones")
    ] = "",
    crf: Annotated[
        bool,
        Parameter(help="the masks with the dense CRF of a run with params.crf; default: its predictions", negative=()),
    ] = False,
    images: Annotated[bool, Parameter(help="copy the images too, where the format has a place for them")] = True,
    worst: Annotated[int, Parameter(help="only so many pictures, the worst first; 0: all")] = 0,
    by: Annotated[
        Literal["suspicion", "score"], Parameter(help="what is worst: suspicion needs no truth, score does")
    ] = "suspicion",
    confidence: Annotated[
        bool, Parameter(help="a grey PNG of each pixel's confidence beside every mask, 255 is certain", negative=())
    ] = False,
    undecided_below: Annotated[
        int, Parameter(help="pixels of less confidence (1 to 255) become undecided (255); 0: none")
    ] = 0,
) -> int:
    """Export a run's masks as a dataset, also of an interrupted run whose masks are complete."""
    from flows.cli.export import export as write

    options: dict[str, Any] = {"worst": worst, "by": by, "confidence": confidence, "undecided_below": undecided_below}
    folder, note = write(cache, run, stage, format_, to, images=images, crf=crf, **options)
    if note:
        terminal().print(escape(note), soft_wrap=True, highlight=False)
    terminal().print(f"exported: {escape(str(folder))}", soft_wrap=True)
    return OK


@app.command
def serve(
    *configs: Annotated[str, Parameter(help="YAML files, or names of shipped configurations; one deployment each")],
    flow: Annotated[str | None, Parameter(help="flow of the files that do not say it themselves (flow: NAME)")] = None,
    cron: Annotated[str | None, Parameter(help='when to run, e.g. "0 2 * * *": every night at two')] = None,
    interval: Annotated[float | None, Parameter(help="run every so many seconds instead")] = None,
    timezone: Annotated[str | None, Parameter(help="time zone of --cron; default: this machine's")] = None,
    port: Annotated[int, Parameter(help="port of the server, on 127.0.0.1")] = 4200,
    home: Annotated[
        Path | None,
        Parameter(help="private folder of server and password; default ~/.local/state/maskmill/prefect"),
    ] = None,
    no_server: Annotated[
        bool, Parameter(help="use the configured API (PREFECT_API_URL), start no server", negative=())
    ] = False,
) -> int:
    """Run flows on a schedule, with a private Prefect server unless an API is configured. Ends on Ctrl-C or SIGTERM."""
    from flows.server import serve as serving
    from flows.server.home import default_home

    return serving.serve(
        configs,
        serving.Schedule(cron, interval, timezone or (serving.local_timezone() if cron else "UTC")),
        home=home or default_home(),
        port=port,
        server=False if no_server else None,
        console=terminal(),
        flow=flow,
    )


def version() -> str:
    """The version of the code that runs: its pyproject.toml's, or the installed package's."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text())["project"]["version"])
    return importlib.metadata.version("maskmill")


COLLECT = (50_000, 20, 50)
"""When garbage is collected. Lists of all pictures are millions of objects that stay: to look through them after each
700 new ones, as Python does by default, takes a fifth of a run that computes nothing."""


class _Once(logging.Filter):
    """A warning is shown once, however many stages and processes meet it."""

    seen: ClassVar[set[str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if record.levelno != logging.WARNING or message not in self.seen:
            self.seen.add(message)
            return True
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: errors become one message and an exit code, signals end every child."""
    shown = RichHandler(
        console=terminal(stderr=True), show_path=False, show_level=False, log_time_format="%Y-%m-%d %H:%M:%S"
    )
    shown.addFilter(_Once())
    _Once.seen.clear()
    logging.basicConfig(level=os.environ.get("MASKMILL_LOG", "WARNING").upper(), format="%(message)s", handlers=[shown])
    before = signal.signal(signal.SIGTERM, _terminate)
    gc.set_threshold(*COLLECT)
    set_defaults(PRIVATE, QUIET)
    try:
        _check_empty(sys.argv[1:] if argv is None else argv)
        add_flows()
        return app(argv, exit_on_error=False, result_action="return_value") or OK
    except CycloptsError:
        return USAGE  # cyclopts has printed what is wrong
    except (DataError, NoDevice) as error:
        return _say(error, USAGE, error)
    except KeyboardInterrupt as error:
        return _say(f"stopped (SIGINT); {KEPT}", 130, error)
    except Terminated as error:
        return _say(f"stopped (SIGTERM); {KEPT}", 143, error)
    except BrokenPipeError:
        return FAILED
    except OSError as error:
        from artifacts.cache.cache_format import advice

        if memory := out_of_memory(error):
            return _say(memory, FAILED, error)
        log.debug("failed", exc_info=True)
        what = f"{error.filename or ''}: {error.strerror or error}; {advice(error)}".removeprefix(": ")
        return _say(what, FAILED, error)
    except Exception as error:
        log.debug("failed", exc_info=True)
        if memory := out_of_memory(error):
            return _say(memory, FAILED, error)
        where = ""
        if type(error).__module__ == "builtins" and not isinstance(error, RuntimeError):  # none of ours: a bug
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f" ({type(error).__name__} at {frame.filename}:{frame.lineno} in {frame.name})"
        hint = "" if hasattr(error, "__notes__") else "\n(MASKMILL_LOG=debug shows the traceback)"
        return _say(f"{error or type(error).__name__}{where}{hint}", FAILED, error)
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_empty(argv: Sequence[str]) -> None:
    """Refuse ``--cache "$UNSET"``: an empty path would be the current folder, an empty name everything."""
    for before, argument in zip(("", *argv), argv, strict=False):
        option = argument.removesuffix("=")
        if not argument.strip() or (argument.startswith("--") and option != argument):
            what = f"after {before}" if before and not argument.strip() else option
            raise DataError(f"an argument is empty ({what or 'the first'}): a variable that is not set?")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _say(message: object, code: int, error: BaseException | None = None) -> int:
    """The error in a line, with its notes: where a run's log is, and the command that goes on."""
    line = "; ".join([str(message), *getattr(error, "__notes__", ())])
    terminal(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]maskmill:[/] {escape(line)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
