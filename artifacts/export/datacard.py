"""The data card of an export: what is in it, how it was made, and what to beware of.

``datacard.json`` for programs, ``datacard.md`` for people. Equal content gives equal bytes: no time, no run id. No text
of a data set (classes, files, licences) can become markup.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts import keys
from artifacts.cache.atomic import write_text_atomic
from artifacts.export.passing import Counted
from artifacts.inputs import shown
from artifacts.records import UNDECIDED

CARD_JSON, CARD_TEXT = "datacard.json", "datacard.md"
CARDS = (CARD_JSON, CARD_TEXT)
FORMAT_VERSION = 1
_SAFE = frozenset(string.ascii_letters + string.digits + " ,-()%+=/.'")
_MARKER = re.compile(r"[-+=]|\d+[.)](\s|$)")
"""What begins a list, a line or a heading."""
_HARMLESS = re.compile(r"(?<=[A-Za-z0-9])_(?=[A-Za-z0-9])|:(?= )")
"""An underscore within a word is no emphasis, and no link has a blank behind its colon."""
_AUTOLINK = re.compile(r"www\.", re.IGNORECASE)


def describe(
    origin: Mapping[str, Any],
    counts: Mapping[str, Any],
    counted: Sequence[Counted],
    manifest: Mapping[str, Any],
    suspicion: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The card as plain data.

    Args:
        origin: what the export was made from (``maskmill-export.json``).
        counts: what its writer counted.
        counted: the splits that were written, the exported stage's first.
        manifest: the run's.
        suspicion: a summary of the masks' suspicion, or ``None``.
    """
    recipe = manifest.get("recipe") or {}
    data = recipe.get("data") or {}
    stage: Mapping[str, Any] = next((one for one in manifest["stages"] if one["label"] == origin["stage"]), {})
    masks = counts.get("val", {}).get("masks", {})
    splits = {one.split: _split(one) for one in counted}
    first = counted[0]
    splits[first.split] |= {"masks_from": f"stage {origin['stage']}", "corrected": _corrected(origin, manifest)}
    for one in counted[1:]:
        splits[one.split]["masks_from"] = ", ".join(
            f"{name} {n}" for name, n in masks.items() if n and name != "no_mask"
        )
    return {
        "maskmill_datacard": FORMAT_VERSION,
        "format": origin["format"],
        "classes": list(first.classes),
        "splits": splits,
        # By name: whoever gets the card need not learn where the data lie.
        "source": {"dataset": stage.get("dataset", ""), "format": data.get("source", "").partition(":")[0]},
        "licences": _licences(counted),
        "made": {
            "flow": origin["flow"],
            "stages": [stage["label"] for stage in manifest["stages"]],
            "params_digest": keys.digest(recipe.get("params") or {}),
            "seeds": dict(_seeds(recipe)),
            "versions": dict(origin["libraries"]),
            "confidence": origin.get("confidence"),
        },
        "scores": origin["scores"],
        "suspicion": suspicion,
        "warnings": [*_warnings(splits, origin, counts, first), *manifest.get("warnings", [])],
    }


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """``datacard.json`` and ``datacard.md``."""
    write_text_atomic(folder / CARD_JSON, json.dumps(card, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    write_text_atomic(folder / CARD_TEXT, as_markdown(card))


def _split(one: Counted) -> dict[str, Any]:
    total = sum(one.pixels.values())
    return {
        "pictures": one.pictures,
        "pixels": total,
        "undecided_share": round(one.pixels[UNDECIDED] / total, 6) if total else 0.0,
        "pictures_turned_upright": one.turned,
        "pictures_without_known_objects": one.pictures - one.with_objects,
        "per_class": [
            {
                "number": number,
                "name": name,
                "pictures": one.shown[number],
                "objects": one.objects[number] if number and one.with_objects else None,
                "pixels": one.pixels[number],
            }
            for number, name in enumerate(["background", *one.classes])
        ],
    }


def _corrected(origin: Mapping[str, Any], manifest: Mapping[str, Any]) -> int:
    """Pictures of the exported stage whose mask is a person's."""
    if origin["stage"] != manifest.get("masks"):
        return 0
    only = origin.get("only")
    found: list[str] = manifest.get("corrected", [])
    return len(found) if only is None else len({*found} & {*only})


def _licences(counted: Iterable[Counted]) -> list[dict[str, Any]]:
    """Licences as the data set's own file lists them, with the number of pictures under each."""
    found: Counter[int] = Counter()
    known: dict[int, Mapping[str, Any]] = {}
    for one in counted:
        found.update(one.licences)
        known |= {entry["id"]: entry for entry in one.origin.get("licenses", []) if isinstance(entry.get("id"), int)}
    return [
        {
            "id": number,
            "name": str(known.get(number, {}).get("name", "")),
            "url": str(known.get(number, {}).get("url", "")),
            "pictures": found[number],
        }
        for number in sorted(found)
    ]


def _seeds(value: Mapping[str, Any], place: str = "") -> Iterable[tuple[str, int]]:
    """Place in the recipe -> seed."""
    for name, part in sorted(value.items()):
        if isinstance(part, Mapping):
            yield from _seeds(part, f"{place}{name}.")
        elif name == "seed" or name.endswith("_seed"):
            yield f"{place}{name}", part


def _image_id(skip: Mapping[str, Any]) -> str:
    return str(skip["key"]).partition("/")[2]


def _warnings(
    splits: Mapping[str, Mapping[str, Any]], origin: Mapping[str, Any], counts: Mapping[str, Any], first: Counted
) -> list[str]:
    """What to beware of, as sentences."""
    found = []
    if missing := set(origin["without_mask"]):
        reason_of = {image_id: one["reason"] for one in origin["skips"] if (image_id := _image_id(one)) in missing}
        why = "".join(f"; {n} x {reason}" for reason, n in Counter(reason_of.values()).most_common(3))
        found.append(f"{len(missing)} pictures have no mask and are left out{why}")
    for split, one in splits.items():
        if one["undecided_share"]:
            found.append(f"{split}: {one['undecided_share']:.2%} of the pixels are undecided (255)")
        if one["pictures_turned_upright"]:
            found.append(f"{split}: {one['pictures_turned_upright']} pictures were turned upright and encoded anew")
    absent = [name for number, name in enumerate(first.classes, 1) if not first.shown[number]]
    if absent:
        found.append(f"no mask of {', '.join(absent)} in {first.split}")
    lost = {
        "undecided_pixels_as_background": "undecided pixels became background: the format has no place for them",
        "images_that_are_no_jpeg": "pictures do not end in .jpg: torchvision's VOC class will not find them",
        "images_that_ultralytics_does_not_find": "pictures will not be found by Ultralytics: their ending, or a folder"
        " called images, is in its way",
        "pixels_changed_by_polygons": "pixels were changed by drawing outlines as polygons",
        "empty_objects": "objects without a pixel were left out",
    }
    found += [f"{counts[name]} {what}" for name, what in lost.items() if counts.get(name)]
    if student := counts.get("val", {}).get("masks", {}).get("student"):
        found.append(f"the masks of {student} evaluation pictures are the student's: they have no truth")
    if not origin["scores"]:
        found.append("these masks were never compared with truth")
    return found


# -- text ------------------------------------------------------------------------------------------------------------


def plain(value: object) -> str:
    """Text of a data set as Markdown that shows it and does nothing: no markup, no HTML, no link, one line."""
    text = shown(str(value)).strip()
    first = len(text) if _MARKER.match(text) is None else 0
    harmless = {found.start() for found in _HARMLESS.finditer(text)}
    text = "".join(
        c if i != first and (i in harmless or c in _SAFE or (not c.isascii() and c.isprintable())) else f"&#{ord(c)};"
        for i, c in enumerate(text)
    )
    return _AUTOLINK.sub(lambda found: found.group()[:-1] + "&#46;", text)


def as_markdown(card: Mapping[str, Any]) -> str:
    """The card for people. Every text that is not ours goes through :func:`plain`."""
    made = card["made"]
    lines = [
        "# Data card",
        "",
        f"Masks made by Maskmill {plain(made['versions'].get('maskmill', ''))}, flow {plain(made['flow'])}. They are no"
        " truth: programs made them, unless a line below says who did.",
        "",
        *_facts(card),
    ]
    for split, one in card["splits"].items():
        lines += ["", f"## Split {plain(split)}", "", *_split_lines(one)]
    if card["scores"]:
        lines += ["", "## Scores against truth", ""]
        lines += _table(
            ("masks", "mIoU", "pictures"), [(n, _percent(s["miou"]), s["images"]) for n, s in card["scores"].items()]
        )
    if suspicion := card["suspicion"]:
        lines += ["", "## Suspicion", "", "0 to 1, an order and no probability; the worst first.", ""]
        lines.append(
            f"- {suspicion['pictures']} pictures looked at: median {suspicion['median']:.3f}, a tenth above"
            f" {suspicion['tenth']:.3f}"
        )
        lines += [f"- {plain(name)}: {value:.3f}" for name, value in suspicion["worst"]]
    if card["warnings"]:
        lines += ["", "## Beware", "", *(f"- {plain(warning)}" for warning in card["warnings"])]
    return "\n".join([*lines, ""])


def _facts(card: Mapping[str, Any]) -> list[str]:
    made = card["made"]
    facts = [
        ("format", card["format"]),
        ("data set", f"{card['source']['dataset']} ({card['source']['format']})"),
        ("stages", ", ".join(made["stages"])),
        ("digest of the parameters", made["params_digest"]),
        ("seeds", ", ".join(f"{name}={value}" for name, value in made["seeds"].items())),
        ("versions", ", ".join(f"{name} {value}" for name, value in made["versions"].items())),
    ]
    lines = [f"- {name}: {plain(value)}" for name, value in facts if value]
    lines += [
        f"- licence {plain(one['name'] or one['id'])} {plain(one['url'])}: {one['pictures']} pictures"
        for one in card["licences"]
    ]
    if not card["licences"]:
        lines.append("- licence: the data set's files name none")
    return [*lines, "- all parameters, addresses and digests: maskmill-export.json"]


def _split_lines(one: Mapping[str, Any]) -> list[str]:
    corrected = f", {one['corrected']} of them corrected by a person" if one.get("corrected") else ""
    rows = [
        (row["name"], row["pictures"], "" if row["objects"] is None else row["objects"], row["pixels"])
        for row in one["per_class"]
    ]
    return [
        f"{one['pictures']} pictures{corrected}; masks: {plain(one['masks_from'])}.",
        "",
        *_table(("class", "pictures", "objects", "pixels"), rows),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|---|" + "--:|" * (len(head) - 1),
        *("| " + " | ".join(plain(cell) for cell in row) + " |" for row in rows),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
