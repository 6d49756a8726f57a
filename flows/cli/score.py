"""``maskmill score``: the masks of a run or of a folder against truth, or edge maps against drawn boundaries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from flows.cli.terminal import terminal

Cache = Annotated[Path, Parameter(name="--cache", help="folder of the mask cache")]


def score(
    *,
    cache: Cache = Path("maskmill-cache"),
    run: Annotated[str | None, Parameter(help="a run's id, or latest; default latest")] = None,
    stage: Annotated[
        str | None, Parameter(help="label of a complete stage; default: the run's masks, or its last complete ones")
    ] = None,
    masks: Annotated[
        Path | None, Parameter(help="score this folder of <image id>.png index masks instead of a run")
    ] = None,
    edges: Annotated[
        Path | None, Parameter(help="score this folder of edge maps <image>.png (`maskmill edges`): ODS, OIS, AP")
    ] = None,
    truth: Annotated[
        Path | None, Parameter(help="with --edges: BSDS500's folder, or one of NAME.mat or NAME.npz as it has")
    ] = None,
    data: Annotated[
        str | None,
        Parameter(name="--data", help="with --masks: the data set; of a run: where its data lie now, if they moved"),
    ] = None,
    split: Annotated[str | None, Parameter(help="with --masks or --edges: the split to score; default val")] = None,
    thinned: Annotated[
        bool, Parameter(help="with --edges: maps are crests already (`maskmill edges --thin`)", negative=())
    ] = False,
    quick: Annotated[bool, Parameter(help="with --edges: 33 thresholds, not 99", negative=())] = False,
    workers: Annotated[int, Parameter(help="with --edges: processes; -1: one per core")] = -1,
    json: Annotated[
        Path | None,
        Parameter(
            help="also write the scores to this file; -: to the output, instead of the tables",
            allow_leading_hyphen=True,
        ),
    ] = None,
    quiet: Annotated[bool, Parameter(help="no progress bar", negative=())] = False,
) -> int:
    """Score masks against truth: mIoU over the set, per class, both readings of 255; without and with a CRF.

    A stage with a second mask from a dense CRF (params.crf of the run) is scored with both masks. With --edges, edge
    maps are scored against drawn boundaries, as the benchmark of BSDS500 does.
    """
    from artifacts.cache.atomic import check_file_writable
    from artifacts.datasets import DataParams
    from artifacts.report import score_table
    from artifacts.report.score_lines import percent
    from flows.cli.cache_tables import print_json
    from flows.cli.export import save_scores, score_folder, score_run
    from flows.config import ConfigError, Layer, build
    from tasks.engine.stage_report import skip_line
    from tasks.stage import CRF_MASK

    check_file_writable("json", None if str(json) == "-" else json)
    if edges is not None:
        from flows.cli.score_edges import score_edges

        if truth is None:
            raise ConfigError("--edges needs --truth: a folder of drawn boundaries, BSDS500's say")
        if masks is not None or run is not None or stage is not None or data is not None:
            raise ConfigError("--edges names edge maps; --masks, --data, --run and --stage are for masks")
        return score_edges(
            edges, truth, split or "val", quick=quick, thinned=thinned, workers=workers, json=json, quiet=quiet
        )
    if truth is not None or thinned or quick:
        raise ConfigError("--truth, --thinned and --quick need --edges")
    with_crf, note, of_run = None, "", ""
    if masks is not None:
        if data is None:
            raise ConfigError("--masks needs --data: the data set whose truth masks are compared")
        if run is not None or stage is not None:
            raise ConfigError("--run and --stage name masks in the cache, --masks a folder: give one or the other")
        given = {"data": {"source": data}}
        scores, scored = score_folder(
            build(DataParams, "data", given, [Layer(given, "--data", {})]), split or "val", masks, cache
        )
        title = str(masks)
    else:
        if split is not None:
            raise ConfigError("--split needs --masks; a run is scored on the split that its stage went over")
        found = score_run(cache, run or "latest", stage or "", data or "")
        note, title, of_run = found.note, found.stage, f"run {found.run}"
        scores, scored = next(iter(found.masks.values()))
        if len(found.masks) > 1:
            with_crf, _ = found.masks[CRF_MASK]
    console = terminal(stderr=str(json) == "-")
    for line in filter(None, (note, of_run)):
        console.print(escape(line), soft_wrap=True, highlight=False)
    if str(json) == "-":
        print_json({"scores": scores} if with_crf is None else {"scores": scores, "scores_crf": with_crf})
    else:
        console.print(score_table(scores, title=title))
    if with_crf is not None and str(json) != "-":
        console.print(score_table(with_crf, title=f"{title}, with CRF"))
        console.print(f"mIoU without CRF {percent(scores['miou'])}, with CRF {percent(with_crf['miou'])}")
    for what, ids in (("without truth", scored.without_truth), ("without mask", scored.without_mask)):
        if ids:
            console.print(f"{len(ids)} images {what}, not scored (the first: {escape(ids[0])})", soft_wrap=True)
    for skip in scored.skips:
        console.print(f"skipped {escape(skip_line(skip.path, skip.reason))}", soft_wrap=True)
    if json is not None and str(json) != "-":
        save_scores(json, scores, with_crf)
    return 3 if scored.skips else 0
