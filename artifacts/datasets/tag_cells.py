"""Cells that hold several tags: what separates them is declared, or found and said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from artifacts.datasets.paths import Notes

TAG_SEPARATOR = ";"
_OTHERS = (",", "|", "/", " ")


def split_tags(
    cells: Sequence[str], declared: str, known: Collection[str], place: str, notes: Notes | None = None
) -> list[list[str]]:
    """The tags of each cell. ``declared`` is ``data.tag_separator``, ``known`` the class table, if there is one.

    Without a declaration it is ``;`` where a cell has one. Else a comma, a bar, a slash or a blank counts as the
    separator if all that it separates are known classes or, without a table, tags of other cells, too; that is said. A
    cell that could be split and is not is said as well: most likely no class has such a name.
    """
    if declared or any(TAG_SEPARATOR in cell for cell in cells):
        found = _split(cells, declared or TAG_SEPARATOR)
        mixed = {tag for tags in found for tag in tags if not declared and tag not in known and set(tag) & {",", "|"}}
        if mixed and notes is not None:
            notes.add("class name with a separator in it", f"{place}: {min(mixed)!r} is one class; the others have ';'")
        return found
    distinct = {cell.strip() for cell in cells if cell.strip()}
    for separator in _OTHERS:
        several = sorted(cell for cell in distinct if separator in cell and cell not in known)
        if not several:
            continue
        often = Counter(tag for tags in _split(sorted(distinct), separator) for tag in set(tags))
        parts = {tag for tags in _split(several, separator) for tag in tags}
        if all(tag in known if known else often[tag] > 1 for tag in parts):
            if notes is not None:
                notes.add("tags are separated otherwise than by ';'", f"{place}: by {separator!r} (data.tag_separator)")
            return _split(cells, separator)
        if notes is not None:
            notes.add(
                "class name with a separator in it",
                f"{place}: {several[0]!r} is one class; if not, say data.tag_separator={separator!r}",
            )
        break
    return [[cell.strip()] if cell.strip() else [] for cell in cells]


def _split(cells: Sequence[str], separator: str) -> list[list[str]]:
    return [[tag for tag in (part.strip() for part in cell.split(separator)) if tag] for cell in cells]
