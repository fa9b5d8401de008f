"""A load on the service, on this machine: does batching pay, how long do clients wait, is every answer one's own?

python benchmarks/service_load.py --out runs/service-load.json
python benchmarks/service_load.py --image-size 32 --method anoclip+ --clients 1 16

Starts `clipspect serve` as it is (or asks one that runs, with --url), lets several clients ask as fast as they get
answers, each request with a photograph nobody else sends, and says per number of clients: requests per second, how long
they took, how many were scored together. An answer is told by its photograph's hash; the service's own counters say
whether anything was scored twice. Clients, service and Ray share the machine, as the figures do.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from clipspect.demo import DEMO_OBJECT, DEMO_PHOTOS
from clipspect.evaluation.provenance import provenance
from clipspect.serving.run import start_service, stop_service
from clipspect.serving.settings import ServiceSettings

PATIENCE_S = 120


@dataclass(frozen=True)
class Load:
    """What a number of clients saw."""

    clients: int
    answered: int
    """Requests answered with 200 and the hash of the photograph that was sent."""
    refused: int
    """Requests answered with an error of the service's shape."""
    lost: int
    """Requests without any answer."""
    foreign: int
    """Requests answered with somebody else's result, or more than one."""
    scored: int
    """Photographs the service says it scored meanwhile."""
    per_second: float
    median_ms: float
    p99_ms: float
    batched: float
    """Requests scored together, on average over requests."""


class Photographs:
    """JPEG files that differ from each other, at one size, made beforehand so that clients only send."""

    def __init__(self, count: int, side: int) -> None:
        """``count`` files of side × side pixels: one of the demo's photographs, each with grain of its own."""
        base = Image.open(sorted(DEMO_PHOTOS.glob("*.jpg"))[0]).convert("RGB").resize((side, side))
        pixels = np.asarray(base, dtype=np.int16)
        random = np.random.default_rng(0)
        files = []
        for _ in range(count):
            buffer = io.BytesIO()
            grain = random.integers(-6, 7, pixels.shape, dtype=np.int16)
            Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
            files.append(buffer.getvalue())
        self._next = iter(files)

    def take(self) -> bytes:
        """One nobody has sent yet."""
        return next(self._next)


def ask(url: str, photographs: Photographs, clients: int, requests: int, method: str) -> Load:
    """Let so many clients ask, one request after the other, until all have been sent."""
    waits: list[float] = []
    batched: list[int] = []
    counts = {"answered": 0, "refused": 0, "lost": 0, "foreign": 0}
    before = scored(url)
    numbers = itertools.count()

    def client() -> None:
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as session:
            while next(numbers) < requests:
                data = photographs.take()
                started = time.perf_counter()
                try:
                    response = session.post(
                        "/v1/detect",
                        data={"object": DEMO_OBJECT, "method": method},
                        files={"photographs": ("a.jpg", data, "image/jpeg")},
                    )
                except httpx.HTTPError:
                    counts["lost"] += 1
                    continue
                waits.append(time.perf_counter() - started)
                if response.status_code != 200:
                    counts["refused"] += 1
                    continue
                answer = response.json()
                own = [result["content_hash"] for result in answer["results"]] == [sha256(data).hexdigest()]
                counts["answered" if own else "foreign"] += 1
                batched.append(answer["batched"])

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(client) for _ in range(clients)]:
            future.result()
    seconds = time.perf_counter() - started
    return Load(
        clients=clients,
        **counts,
        scored=scored(url) - before,
        per_second=counts["answered"] / seconds,
        median_ms=1000 * float(np.median(waits)),
        p99_ms=1000 * float(np.quantile(waits, 0.99)),
        batched=float(np.mean(batched)),
    )


def scored(url: str) -> int:
    """Photographs the service has counted so far."""
    counts = re.findall(
        r"^clipspect_photographs_total\{.*\} (\S+)$",
        httpx.get(f"{url}/metrics", timeout=30).text,
        re.MULTILINE,
    )
    return int(sum(map(float, counts)))


@contextmanager
def service(options: argparse.Namespace) -> Iterator[str]:
    """The address of a service: the one named, or one of its own."""
    if options.url:
        yield options.url.rstrip("/")
        return
    settings = ServiceSettings(
        models=(options.model,),
        weights=options.weights,
        image_size=options.image_size,
        batch=options.batch,
        batch_wait_ms=options.batch_wait_ms,
        replicas=options.replicas,
        queue=256,
    )
    try:
        start_service(settings, host="127.0.0.1", port=options.port)
        yield f"http://127.0.0.1:{options.port}"
    finally:
        stop_service()


def main() -> None:
    """Run, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a service that runs; without it one is started")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--method", default="anoclip")
    parser.add_argument("--side", type=int, default=256, help="pixels of the photographs sent")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=200, help="for each number of clients")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batch-wait-ms", type=float, default=10)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warm_up = 2 * max(options.clients)
    photographs = Photographs(warm_up + options.requests * len(options.clients), options.side)
    with service(options) as url:
        ask(url, photographs, max(options.clients), warm_up, options.method)
        loads = [ask(url, photographs, n, options.requests, options.method) for n in options.clients]
    print("| clients | requests/s | median | p99 | scored together | answered | refused | lost | foreign |")
    print("|---|---|---|---|---|---|---|---|---|")
    for load in loads:
        print(
            f"| {load.clients} | {load.per_second:.1f} | {load.median_ms:.0f} ms | {load.p99_ms:.0f} ms"
            f" | {load.batched:.1f} | {load.answered} | {load.refused} | {load.lost} | {load.foreign} |"
        )
    for load in loads:
        if load.scored != load.answered:
            print(f"{load.clients} clients: {load.scored} photographs scored for {load.answered} answers")
    print(
        f"{loads[-1].clients} clients: {loads[-1].per_second / loads[0].per_second:.2f} × of {loads[0].clients}"
    )
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {key: str(value) for key, value in vars(options).items()}
        written = {
            "provenance": provenance(),
            "settings": settings,
            "loads": [asdict(load) for load in loads],
        }
        options.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
