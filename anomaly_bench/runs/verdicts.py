"""Image scores, judged: verdict, percentile among normal images, rank, and confusion counts where labels are known.

Everything comes from the scores of normal images that the method was not fitted on (`metrics.thresholds`). Labels are
only counted against: no threshold is made from them.
"""

from __future__ import annotations

import bisect
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anomaly_bench.data.mvtec import GOOD
from anomaly_bench.errors import shown
from anomaly_bench.files import safe_cell, write_atomically
from anomaly_bench.metrics.thresholds import shortage

COLUMNS = ("file", "score", "percentile", "verdict", "rank")  # of scores.csv
DEFECTIVE, NORMAL = "defective", "normal"
WORST = 10  # images shown: those of the highest scores


class Judge:
    """Judges image scores by those of held-out normal images.

    Args:
        thresholds: as in a record; empty: there are none, and no verdicts.
        held_out: as in a record; empty: there are no percentiles.
    """

    def __init__(self, thresholds: Mapping[str, Any], held_out: Sequence[Mapping[str, Any]]) -> None:
        self.thresholds = thresholds
        self.threshold: float | None = thresholds.get("image")
        self.normals = sorted(image["score"] for image in held_out)

    def verdict(self, score: float) -> str:
        """ "defective", "normal", or "" without a threshold."""
        if self.threshold is None:
            return ""
        return DEFECTIVE if score > self.threshold else NORMAL

    def percentile(self, score: float) -> float | None:
        """The share of held-out normal images, in %, whose score is not higher."""
        if not self.normals:
            return None
        return 100 * bisect.bisect_right(self.normals, score) / len(self.normals)

    def rows(self, scored: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
        """One row of `COLUMNS` for each (score, file), in their order; rank 1 is the highest score."""
        ordered = sorted(-score for score, _ in scored)
        return [
            {
                "file": file,
                "score": score,
                "percentile": self.percentile(score),
                "verdict": self.verdict(score),
                "rank": 1 + bisect.bisect_left(ordered, -score),
            }
            for score, file in scored
        ]

    def basis(self) -> str:
        """What verdicts rest on, in one line."""
        if not self.thresholds:
            return "no verdicts: the model was fitted without holdout=0.2; calibrate=DIR takes your own normal images"
        count, rate = self.thresholds["images"], self.thresholds["max_false_alarms"]
        why = shortage(count, rate) or f"at most {100 * rate:g}% false alarms, by {count} held-out normal images"
        return f"no verdicts ({why})" if self.threshold is None else f"score above {self.threshold:.6g} ({why})"


def write_scores(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """`scores.csv`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        share = "" if row["percentile"] is None else f"{row['percentile']:.6g}"
        writer.writerow((safe_cell(row["file"]), row["score"], share, row["verdict"], row["rank"]))
    write_atomically(file, text.getvalue().encode("utf-8", "surrogateescape"))


def summary(rows: Sequence[Mapping[str, Any]], judge: Judge) -> Iterator[str]:
    """The lines on the screen: how many are defective, the worst images, confusion counts."""
    alarms = sum(row["verdict"] == DEFECTIVE for row in rows)
    judged = judge.threshold is not None
    yield f"{alarms} of {len(rows)} judged defective: {judge.basis()}" if judged else judge.basis()
    yield f"{'rank':>4}  {'score':>12}  {'percentile':>10}  {'verdict':<9}  image"
    for row in sorted(rows, key=lambda row: row["rank"])[:WORST]:
        share = "" if row["percentile"] is None else f"{row['percentile']:.1f}"
        verdict, image = row["verdict"], shown(row["file"])
        yield f"{row['rank']:>4}  {row['score']:>12.6g}  {share:>10}  {verdict:<9}  {image}"
    if judged:
        yield from confusion(rows)


def confusion(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Confusion counts of a labelled folder: every image is in a subfolder, and the normal ones are in `good`."""
    folders = [row["file"].partition("/") for row in rows]
    if not all(slash for _, slash, _ in folders) or GOOD not in (name for name, _, _ in folders):
        return
    yield f"{'folder':<12}  {'images':>6}  {'judged defective':>16}  {'judged normal':>13}"
    defective = [name != GOOD for name, _, _ in folders]
    for label, title in ((True, DEFECTIVE), (False, f"{NORMAL} ({GOOD})")):
        verdicts = [row["verdict"] for row, found in zip(rows, defective, strict=True) if found == label]
        alarms = verdicts.count(DEFECTIVE)
        yield f"{title:<13} {len(verdicts):>6}  {alarms:>16}  {len(verdicts) - alarms:>13}"
