"""Load-test the service on this machine: gain from batching, latency, and one correct response per request.

python benchmarks/service_load.py --out runs/service-load.json
python benchmarks/service_load.py --image-size 32 --side 64 --batch 16 1

Starts `clipspect serve` (or uses a running one, with --url). Several clients send requests back to back, each with a
unique image. Reports per number of clients: requests per second, latency, and the number of requests scored together.
Several --batch values run in sequence: 1 is the control. The image's hash identifies a response; the service's counters
detect images scored twice. Clients, service and Ray share the machine. Request bodies are prepared before timing.

"""

from __future__ import annotations

import argparse
import http.client
import io
import itertools
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
from PIL import Image

from clipspect.benchmark.provenance import provenance
from clipspect.demo import DEMO_IMAGES, DEMO_OBJECT

PATIENCE_S = 120
START_S = 300


@dataclass(frozen=True)
class Load:
    """Results for one number of clients."""

    batch: int
    """Maximum number of requests scored together, as configured."""
    clients: int
    answered: int
    """Requests answered with 200 and the hash of the sent image."""
    refused: int
    """Requests answered with an error in the service's format."""
    lost: int
    """Requests without a response."""
    foreign: int
    """Requests answered with another request's result, or more than one."""
    scored: int
    """Images that the service counted as scored."""
    per_second: float
    median_ms: float
    p99_ms: float
    batched: float
    """Mean number of requests scored together."""


@dataclass(frozen=True)
class Message:
    """Prepared request."""

    body: bytes
    headers: dict[str, str]
    image: str
    """SHA-256 of its image."""


def messages(count: int, side: int, method: str) -> list[Message]:
    """Return ``count`` requests, each with a unique image of side × side pixels: the demo's, with different noise."""
    base = Image.open(sorted(DEMO_IMAGES.glob("*.jpg"))[0]).convert("RGB").resize((side, side))
    pixels = np.asarray(base, dtype=np.int16)
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        buffer = io.BytesIO()
        grain = random.integers(-6, 7, pixels.shape, dtype=np.int16)
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        request = httpx.Request(
            "POST",
            "http://service/v1/detect",
            data={"object": DEMO_OBJECT, "method": method},
            files={"images": ("a.jpg", buffer.getvalue(), "image/jpeg")},
        )
        headers = {"Content-Type": request.headers["content-type"]}
        made.append(Message(request.read(), headers, sha256(buffer.getvalue()).hexdigest()))
    return made


def ask(url: str, waiting: list[Message], clients: int, batch: int) -> Load:
    """Send all requests from ``clients`` concurrent clients, each one request after the other."""
    waits: list[float] = []
    batched: list[int] = []
    counts = {"answered": 0, "refused": 0, "lost": 0, "foreign": 0}
    before = scored(url)
    address = urlsplit(url).netloc
    numbers = itertools.count()

    def client() -> None:
        session = http.client.HTTPConnection(address, timeout=PATIENCE_S)
        while (number := next(numbers)) < len(waiting):
            message = waiting[number]
            started = time.perf_counter()
            try:
                session.request("POST", "/v1/detect", message.body, message.headers)
                response = session.getresponse()
                answer = json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError):  # ValueError: no JSON
                counts["lost"] += 1
                session.close()
                continue
            waits.append(time.perf_counter() - started)
            if response.status != 200:
                counts["refused"] += 1
                continue
            own = [result["content_hash"] for result in answer["results"]] == [message.image]
            counts["answered" if own else "foreign"] += 1
            batched.append(answer["batched"])
        session.close()

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(client) for _ in range(clients)]:
            future.result()
    seconds = time.perf_counter() - started
    return Load(
        batch=batch,
        clients=clients,
        **counts,
        scored=scored(url) - before,
        per_second=counts["answered"] / seconds,
        median_ms=1000 * float(np.median(waits)),
        p99_ms=1000 * float(np.quantile(waits, 0.99)),
        batched=float(np.mean(batched)),
    )


def scored(url: str) -> int:
    """Return the number of images the service has counted."""
    counts = re.findall(
        r"^clipspect_images_total\{.*\} (\S+)$",
        httpx.get(f"{url}/metrics", timeout=30).text,
        re.MULTILINE,
    )
    return int(sum(map(float, counts)))


@contextmanager
def service(options: argparse.Namespace, batch: int) -> Iterator[str]:
    """Yield the address of the given service, or of one started here."""
    if options.url:
        yield options.url.rstrip("/")
        return
    url = f"http://127.0.0.1:{options.port}"
    flags = {
        "--port": options.port,
        "--model": options.model,
        "--weights": options.weights,
        "--image-size": options.image_size,
        "--batch": batch,
        "--replicas": options.replicas,
        "--queue": 256,
    }
    command = [sys.executable, "-c", "from clipspect.cli import main; main()", "serve"]
    command += [str(word) for flag in flags.items() if flag[1] is not None for word in flag]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        running = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            _wait_until_ready(url, running, Path(log.name))
            yield url
        finally:
            running.send_signal(signal.SIGINT)
            running.wait(60)


def is_ready(url: str) -> bool:
    """Return whether a service has loaded its models."""
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _wait_until_ready(url: str, running: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and running.poll() is None:
        if is_ready(url):
            return
        time.sleep(0.5)
    raise SystemExit(f"the service did not start:\n{log.read_text(encoding='utf-8')[-2000:]}")


def main() -> None:
    """Run, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a running service; default: start one")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--method", default="anoclip")
    parser.add_argument("--side", type=int, default=256, help="pixels of the images sent")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=200, help="for each number of clients")
    parser.add_argument("--batch", type=int, nargs="+", default=[16])
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warm_up = 2 * max(options.clients)
    loads: list[Load] = []
    for batch in options.batch:
        waiting = iter(
            messages(warm_up + options.requests * len(options.clients), options.side, options.method)
        )
        with service(options, batch) as url:
            ask(url, list(itertools.islice(waiting, warm_up)), max(options.clients), batch)
            for clients in options.clients:
                loads.append(ask(url, list(itertools.islice(waiting, options.requests)), clients, batch))
    report(loads)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {key: str(value) for key, value in vars(options).items()}
        written = {
            "provenance": provenance(),
            "settings": settings,
            "loads": [asdict(load) for load in loads],
        }
        options.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def report(loads: list[Load]) -> None:
    """Print the table and the gain from batching."""
    print(
        "| `--batch` | clients | requests/s | median | p99 | scored together | answered | refused, lost, foreign |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for load in loads:
        print(
            f"| {load.batch} | {load.clients} | {load.per_second:.1f} | {load.median_ms:.0f} ms | {load.p99_ms:.0f} ms"
            f" | {load.batched:.1f} | {load.answered} | {load.refused}, {load.lost}, {load.foreign} |"
        )
    for load in loads:
        if load.scored != load.answered:
            print(f"{load.clients} clients: {load.scored} images scored for {load.answered} answers")
    for first in loads:
        for other in loads:
            if first.batch == other.batch and first.clients == 1 < other.clients:
                ratio = other.per_second / first.per_second
                print(
                    f"--batch {first.batch}: {other.clients} clients get {ratio:.2f} × the throughput of one"
                )


if __name__ == "__main__":
    main()
