"""The watch itself: take images that are complete, judge them, record them, and act on them."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clipspect.data.decode import hash_file
from clipspect.detection import Detection
from clipspect.errors import ImageError, ResultsError
from clipspect.postprocess.heatmap import encode_preview
from clipspect.product import Product
from clipspect.results.drift import MIN_AFTER, compare_samples
from clipspect.results.files import write_picture
from clipspect.results.finalize import OVERLAY_SIDE
from clipspect.results.outputs import method_suffix, output_path
from clipspect.results.report import write_report
from clipspect.results.rows import detection_to_row, summary_of
from clipspect.results.store import OVERLAYS, ResultStore
from clipspect.watch.journal import LATEST, Journal, Stamp, deciding_row, image_key
from clipspect.watch.sources import Arrival, ImageSource
from clipspect.watch.targets import DRIFT, FILES, DeliveryError, FileTarget, Mqtt, Target, Webhook

STORE_AT_ONCE = 64
"""Images whose rows are written to the results folder together."""
STORE_SECONDS = 5.0
RETRY_SECONDS = 5.0
"""Wait after a full disk, or another fault of the results folder."""

DRIFT_IMAGES, DRIFT_EVERY = 200, 50
"""Latest images that are compared with the calibration's, and how often."""

Say = Callable[[str], None]
Queue = Mapping[str, Target]
"""Name → target, of targets that are told one after the other."""


@dataclass
class Counts:
    """What a watch has done since it was started."""

    verdicts: Counter[str] = field(default_factory=Counter)
    again: int = 0
    """Files with the content of an image that was judged before."""

    @property
    def images(self) -> int:
        """Number of judged images."""
        return sum(self.verdicts.values())


@dataclass
class Watcher:
    """Judges what a source gives with a product profile, once each.

    Images are recorded in the journal before anything is done with them: a killed watch continues where it was, without
    losing or doubling a row or an action. At most ``batch`` images are in memory; while they cannot be
    recorded, because a disk is full, no others are taken.
    """

    product: Product
    source: ImageSource
    out: Path
    targets: Sequence[Target] = ()
    batch: int = 8
    poll: float = 1.0
    """Seconds between two looks at the source where it had nothing."""
    overlays: bool = True
    """Whether flagged images get an overlay."""
    say: Say = lambda text: None
    on_image: Callable[[Mapping[str, Any]], None] = lambda event: None
    stop: threading.Event = field(default_factory=threading.Event)
    counts: Counts = field(default_factory=Counts)
    _recent: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=DRIFT_IMAGES))
    """(peak, flag) of the latest images."""
    _has_drifted: bool = False
    _fault: str = ""
    """Why actions could not be noted the last time."""

    def run(self, *, once: bool = False) -> Counts:
        """Watch until :attr:`stop` is set, a file source ends, or with ``once`` until nothing waits.

        Raises:
            ResultsError: the results folder holds another profile's rows, or cannot be opened.
        """
        with ResultStore(self.out, self._settings(), config=self.product.detector.config.to_dict()) as store:
            calibrations = {name: one.to_dict() for name, one in self.product.good.calibrations.items()}
            moved = [one.folder for one in self.targets if isinstance(one, FileTarget) and one.moves]
            store.update_manifest(
                calibrations=calibrations,
                moved_to=str(moved[0].resolve()) if moved else store.manifest.get("moved_to"),
            )
            journal = Journal(self.out)
            queues = self._queues()
            deliveries = [
                threading.Thread(target=self._deliver, args=(journal, queue), name="deliveries")
                for queue in queues
            ]
            try:
                self._recover(store, journal)
                for thread in deliveries:
                    thread.start()
                self._watch(store, journal, once)
                self._store(store, journal)
            finally:
                self.stop.set()
                for thread in deliveries:
                    if thread.ident is not None:
                        thread.join()
                while once and any(self._deliver_due(journal, queue) for queue in queues):
                    pass  # what fails is due later, and waits for the next watch
                journal.close()
                self.source.close()
        return self.counts

    def waiting(self) -> dict[str, int]:
        """State → number of actions in the journal."""
        journal = Journal(self.out)
        try:
            return journal.counts()
        finally:
            journal.close()

    def report(self) -> Path:
        """Write the report of the results folder."""
        return write_report(self.out)

    def _settings(self) -> dict[str, Any]:
        detector, profile = self.product.detector, self.product.profile
        return {
            **detector.settings(),
            "object": profile.object,
            "profile": profile.label,
            "source": str(getattr(self.source, "folder", "video")),
        }

    def _watch(self, store: ResultStore, journal: Journal, once: bool) -> None:
        stored_at = time.monotonic()
        quiet, missing = False, ""
        while not self.stop.is_set():
            try:
                arrivals = self.source.take(self.batch, journal.is_judged)
                if bool(self.source.missing) != bool(missing):
                    self.say(f"waiting: {self.source.missing}" if not missing else "the source is back")
                missing = self.source.missing
                for group in self._judge(journal, arrivals):
                    self._record(journal, *group)
                if len(arrivals) >= STORE_AT_ONCE or time.monotonic() - stored_at > STORE_SECONDS:
                    self._store(store, journal)
                    stored_at = time.monotonic()
                quiet = False
            except ResultsError as error:
                if not quiet:
                    self.say(f"waiting: {error}")
                quiet = True
                self.stop.wait(RETRY_SECONDS)
                continue
            if arrivals:
                continue
            if (once or not self.source.is_endless) and self.source.is_finished():
                return
            self.stop.wait(self.poll)

    def _judge(
        self, journal: Journal, arrivals: Sequence[Arrival]
    ) -> Iterator[tuple[str, Arrival, list[Detection]]]:
        """Yield (key, arrival, detections) of the images that are not recorded yet."""
        label = self.product.profile.label
        new: dict[str, tuple[str, Arrival]] = {}
        digests: dict[str, str] = {}
        for one in arrivals:
            digest = ""
            if isinstance(one.image, Path):
                with suppress(ImageError):  # removed meanwhile, or unreadable: its row holds the error
                    digest = hash_file(one.image)
                key = image_key(one.name, digest, label)
                digests[key] = digest
                if journal.knows(key):
                    self._came_again(journal, key, one.stamp)
                    continue
            else:
                key = image_key(one.name, "", label)
                if journal.knows(key):
                    continue
            new[self._row_name(journal, one.name)] = (key, one)
        if not new:
            return
        methods = len(self.product.detector.methods)
        images = [one.image for _, one in new.values()]
        found = list(
            self.product.detector.stream(images, object=self.product.profile.object, good=self.product.good)
        )
        for number, (name, (key, arrival)) in enumerate(new.items()):
            detections = found[number * methods : (number + 1) * methods]
            if digests.get(key) not in ("", None, detections[0].content_hash):
                continue  # changed while it was read: it is taken again once it is complete
            yield key, arrival, [_named(one, name) for one in detections]

    def _came_again(self, journal: Journal, key: str, stamp: Stamp | None) -> None:
        if stamp is not None:
            has_files = any(target.name == FILES for target in self.targets)
            journal.came_again(key, stamp, FILES if has_files else None)
            self.counts.again += 1

    @staticmethod
    def _row_name(journal: Journal, name: str) -> str:
        """The name of a row: that of the file, with the time where other content had that name before."""
        if not journal.has_path(name):
            return name
        return f"{name}@{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%f')}"

    def _record(self, journal: Journal, key: str, arrival: Arrival, detections: Sequence[Detection]) -> None:
        rows = [
            detection_to_row(
                one, None if one.thumbnail is None else encode_preview(one.thumbnail), judged=True
            )
            for one in detections
        ]
        for row, one in zip(rows, detections, strict=True):
            if row["error"] is not None:
                row["profile"] = self.product.profile.label
            elif row["flag"] and self.overlays:
                self._draw(one, several=len(rows) > 1)
        first = deciding_row(rows)
        if self.overlays and first["error"] is None:
            self._write(detections[rows.index(first)], self.out / LATEST)
        event = _event(first, arrival)
        events = {
            target.name: event for target in self.targets if arrival.stamp is not None or target.name != FILES
        }
        if journal.record(key, rows, events, arrival.stamp):
            self.counts.verdicts[str(first["verdict"])] += 1
            self.on_image(event)
            self._look_for_drift(journal, rows[0])

    def _look_for_drift(self, journal: Journal, row: Mapping[str, Any]) -> None:
        """Tell the targets when the latest images' scores have left those of the known-good images."""
        calibration, summary = self.product.good.calibrations[row["method"]], summary_of(row)
        if summary is None:
            return
        self._recent.append((calibration.peak(summary), bool(row["flag"])))
        if self.counts.images % DRIFT_EVERY or len(self._recent) < MIN_AFTER:
            return
        found = compare_samples(calibration.peaks, [peak for peak, _ in self._recent])
        if not found.has_changed or self._has_drifted:
            self._has_drifted = bool(found.has_changed)
            return
        self._has_drifted = True
        flagged = sum(flag for _, flag in self._recent) / len(self._recent)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        event = {
            "event": DRIFT,
            "profile": self.product.profile.label,
            "images": len(self._recent),
            "flagged": flagged,
            "stability_index": found.psi,
            "kolmogorov_smirnov": found.ks,
            "p": found.p,
            "time": now,
        }
        key = image_key(DRIFT, now, self.product.profile.label)
        journal.notify(key, {target.name: event for target in self.targets if target.name != FILES})
        self.say(
            f"drift: the scores of the latest {len(self._recent)} images differ from those of the known-good images"
            f" ({flagged:.0%} are flagged); look at them, and at camera and light"
        )

    def _draw(self, detection: Detection, *, several: bool) -> None:
        suffix = method_suffix(detection.method, several=several) + ".png"
        self._write(detection, output_path(self.out / OVERLAYS, detection.path, suffix))

    def _write(self, detection: Detection, place: Path) -> None:
        try:
            picture = detection.overlay(max_side=OVERLAY_SIDE)
        except ImageError:
            return  # removed meanwhile; the row has the map
        write_picture(self.out, place, picture)

    @staticmethod
    def _store(store: ResultStore, journal: Journal) -> None:
        """Move rows from the journal to the results folder."""
        while waiting := journal.unstored(STORE_AT_ONCE):
            for _, rows in waiting:
                for row in rows:
                    store.add(row)
            store.flush()
            journal.mark_stored([key for key, _ in waiting])

    def _recover(self, store: ResultStore, journal: Journal) -> None:
        """After a kill: rows that are in both places are marked."""
        finished = store.finished()
        names = journal.unstored_names()
        journal.mark_stored([key for key, path, digest in names if (path, digest) in finished])

    def _queues(self) -> list[Queue]:
        """Targets by name that are told in turn: one that is down delays no other; a program runs before a move."""
        remote = [one for one in self.targets if isinstance(one, Webhook | Mqtt)]
        local = {one.name: one for one in self.targets if one not in remote}
        return [*({one.name: one} for one in remote), *([local] if local else [])]

    def _deliver(self, journal: Journal, queue: Queue) -> None:
        while not self.stop.is_set():
            if not self._deliver_due(journal, queue):
                self.stop.wait(0.2)

    def _deliver_due(self, journal: Journal, queue: Queue) -> bool:
        """Do one action that is due; return whether there was one."""
        try:
            action = journal.due(*queue)
            if action is None:
                return False
            action = journal.start(action)
            self._fault = ""
            try:
                queue[action.target].send(action.key, action.event)
                journal.succeeded(action)
            except DeliveryError as error:
                if action.attempts == 1:
                    self.say(f"{action.target}: {error}; it is tried again")
                if journal.failed(action, str(error)):
                    self.say(f"{action.target}: given up: {error}")
        except ResultsError as error:
            if str(error) != self._fault:
                self.say(f"waiting: {error}")
            self._fault = str(error)
            self.stop.wait(RETRY_SECONDS)
        return True


def _named(detection: Detection, name: str) -> Detection:
    return replace(detection, path=name)


def _event(row: Mapping[str, Any], arrival: Arrival) -> dict[str, Any]:
    """What targets are told of an image."""
    kept = ("path", "content_hash", "object", "method", "verdict", "flag", "score", "threshold", "profile", "regions",
            "error", "width", "height")  # fmt: skip
    return {
        **{name: row[name] for name in kept},
        "file": arrival.name,
        "time": row["finished_at"].isoformat(timespec="milliseconds"),
    }
