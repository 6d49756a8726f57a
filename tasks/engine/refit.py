"""The option ``refit``: when a fit is done again, and when the last one stands in for it ("pinned").

Nothing is remembered for it: the publications in the cache, with the records that each was trained on, say all.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from artifacts.cache.fit_store import Difference
from tasks.engine.pending import Sources
from tasks.stage import Handle, MapHandle

Kind = Literal["changed", "never", "share", "days"]
DAY_S = 86400.0


@dataclass(frozen=True)
class Refit:
    """``changed``, ``never``, ``share:0.1`` or ``days:7``."""

    kind: Kind
    limit: float = 0.0
    """Share of the last fit's records, or days."""

    @classmethod
    def parse(cls, text: str) -> Refit:
        """The policy that ``text`` names. Raises ``ValueError`` that says what there is."""
        if text == "changed":
            return cls("changed")
        if text == "never":
            return cls("never")
        found = re.fullmatch(r"(share|days):(\d+(?:\.\d*)?|\.\d+)", text)
        if found is None or not float(found[2]) > 0:
            raise ValueError(
                f"refit {text!r}: there are changed, never, share:X (X of the last fit's pictures are new, changed or"
                " gone, e.g. share:0.1) and days:N (the last fit is N days old, e.g. days:7); X and N are above 0"
            )
        return cls("share" if found[1] == "share" else "days", float(found[2]))

    def due(self, difference: Difference, age_s: float, doubtful: int = 0) -> bool | None:
        """Whether a fit is done again whose records differ by ``difference`` from those of the last, ``age_s`` old.

        ``doubtful``: so many of the records that count as the same may have changed. ``None``: it depends on them.
        """
        match self.kind:
            case "changed":
                return True
            case "never":
                return False
            case "days":
                return age_s >= self.limit * DAY_S
            case "share":
                least, most = difference.share, difference.share + doubtful / difference.trained_on
                return least >= self.limit if (least >= self.limit) == (most >= self.limit) else None


def pin_text(published: float, difference: Difference, doubtful: int = 0) -> str:
    """What is said of a fit of the time ``published`` (seconds since the epoch) that stands in for a new one."""
    since = datetime.datetime.fromtimestamp(published, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    counts = {
        "new": difference.new,
        "changed": difference.changed,
        "perhaps changed": doubtful,
        "removed": difference.removed,
    }
    listed = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    more = f" ({listed})" if listed else ""
    return f"pinned since {since}, trained on {difference.same - doubtful:,} of now {difference.now:,} records{more}"


def made_with(upstream: Mapping[str, Handle], sources: Sources) -> list[str]:
    """Files (by digest) and seeds with which the arrays of ``upstream`` were made, themselves or by their networks.

    No address tells them: with others, an older fit would stand in for a new one without a word.
    """
    maps = (handle for handle in upstream.values() if isinstance(handle, MapHandle))
    return sorted({text for handle in maps for text in _made_with(handle, sources)})


def _made_with(handle: MapHandle, sources: Sources) -> Iterator[str]:
    yield from map(sources.file, handle.stage.inputs.values())
    for above in handle.upstream.values():
        if isinstance(above, MapHandle):
            yield from _made_with(above, sources)
        elif above.stage.function:
            yield f"{above.stage.name} {above.stage.seed}"
            yield from map(sources.file, above.stage.inputs.values())
        else:  # out of a file
            yield above.digest or ""
