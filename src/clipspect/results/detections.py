"""Detections: what ``Detector.detect`` returns for many images."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from clipspect.detection import Detection
from clipspect.errors import UsageError
from clipspect.postprocess.verdict import count_verdict
from clipspect.results.export import detection_json
from clipspect.types import plural

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 20
"""Rows with a picture in a notebook."""
_SIDE = 160


class Detections(Sequence[Detection]):
    """Detections in the order of the images, one per image and method. Immutable."""

    def __init__(self, detections: Iterable[Detection] = ()) -> None:
        """Keep the detections."""
        self._items = tuple(detections)

    @staticmethod
    def merge(parts: Iterable[Iterable[Detection]]) -> Detections:
        """Join several into one, in order. Each detection keeps its own calibration."""
        return Detections(one for part in parts for one in part)

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice) -> Detections: ...
    def __getitem__(self, index: int | slice) -> Detection | Detections:
        """One detection, or the detections of a slice."""
        return Detections(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __len__(self) -> int:
        """Number of detections."""
        return len(self._items)

    def __iter__(self) -> Iterator[Detection]:
        """In the order of the images."""
        return iter(self._items)

    def __eq__(self, other: object) -> bool:
        """Whether the same detections are in the same order."""
        return isinstance(other, Detections | list | tuple) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Count by verdict: ``Detections(13 images: 7 flagged, 6 clean)``."""
        paths, methods = {one.path for one in self}, {one.method for one in self}
        several = f", {len(methods)} methods" if len(methods) > 1 else ""
        words = ", ".join(count_verdict(count, verdict) for verdict, count in self.verdicts.items())
        return f"Detections({plural(len(paths), 'image')}{several}{': ' if words else ''}{words})"

    @property
    def verdicts(self) -> Counter[str]:
        """Verdict → number of detections."""
        return Counter(one.verdict for one in self)

    def to_dict(self) -> list[dict[str, Any]]:
        """One JSON-serializable row per detection, with the columns of a results folder (docs/results.md)."""
        return [detection_json(one) for one in self]

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with the rows of :meth:`to_dict`. Raises UsageError where pandas is not installed."""
        try:
            import pandas as pd
        except ImportError as error:
            raise UsageError("to_pandas needs pandas: pip install pandas") from error
        return pd.DataFrame(self.to_dict())

    def _repr_html_(self) -> str:
        """A table with pictures, for notebooks; highest scores first."""
        shown = sorted(self, key=lambda one: -one.score if one.error is None else float("inf"))[:SHOWN]
        rows = "".join(_html_row(one) for one in shown)
        more = f"<p>… and {len(self) - len(shown)} more</p>" if len(self) > len(shown) else ""
        head = "<tr><th></th><th>image</th><th>verdict</th><th>score</th><th>method</th></tr>"
        return f"<p>{html.escape(repr(self))}</p><table>{head}{rows}</table>{more}"


def _html_row(one: Detection) -> str:
    score = "" if one.error is not None else f"{one.score:.3f}"
    said = one.error or one.verdict.replace("_", " ")
    cells = "".join(f"<td>{html.escape(text)}</td>" for text in (one.path, said, score, one.method))
    return f"<tr><td>{_picture(one)}</td>{cells}</tr>"


def _picture(one: Detection) -> str:
    if one.score_map is None or one.pixels is None:
        return ""
    buffer = io.BytesIO()
    one.overlay(max_side=_SIDE).save(buffer, "JPEG", quality=80)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
