"""Decode thousands of damaged images: each must give pixels or an ImageError.

python benchmarks/fuzz_images.py --random 40000 --out runs/fuzz

Valid files of every format are truncated at every kilobyte and every early byte, and header bytes are flipped.
Dimensions are set to absurd values with valid checksums, junk is appended, frames and directories are multiplied, and
random bytes are changed by a seed. A child process decodes the files one after the other. The script reports crashes,
files that exceed the time limit, exceptions other than ImageError, wrong arrays and the peak of memory. Any of them
gives exit code 1.

"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import struct
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipspect.benchmark.provenance import provenance
from clipspect.data.decode import decode_image
from clipspect.errors import ImageError

MAX_PIXELS = 20_000_000
MEMORY_CAP = 500.0
"""Memory limit in MB above the start, at 20 million pixels."""
SECONDS_PER_FILE = 20.0
JUNK = (b"\0" * 4096, b"\xff\xd8\xff\xe0" * 64, b"PK\x03\x04" + b"x" * 999, b"<script>" * 99)
ABSURD = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1)
Made = tuple[str, bytes]
"""Kind of damage, and the file."""


def valid_files() -> dict[str, bytes]:
    """Return a file of every supported format and mode, some tens of kilobytes each."""
    random = np.random.default_rng(3)
    low = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(low).resize((320, 240), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a camera" * 20
    grey16 = Image.fromarray(np.arange(240 * 320, dtype=np.uint16).reshape(240, 320))
    unit = Image.fromarray(np.linspace(0, 1, 240 * 320, dtype=np.float32).reshape(240, 320))

    def turned() -> dict[
        str, Any
    ]:  # a new image each time, because Pillow stores options of one format on it
        return {"save_all": True, "append_images": [picture.rotate(angle) for angle in (10, 20, 30)]}

    kinds: list[tuple[str, str, Image.Image, dict[str, Any]]] = [
        ("jpeg", "JPEG", picture, {"exif": exif, "quality": 90}),
        ("progressive jpeg", "JPEG", picture, {"progressive": True}),
        ("cmyk jpeg", "JPEG", picture.convert("CMYK"), {}),
        ("multi-picture jpeg", "MPO", picture, turned()),
        ("png", "PNG", picture, {"exif": exif}),
        ("palette png", "PNG", picture.convert("P"), {"transparency": 3}),
        ("16-bit png", "PNG", grey16, {}),
        ("animated png", "PNG", picture, turned()),
        ("tiff", "TIFF", picture, {"exif": exif}),
        ("deflate tiff", "TIFF", picture, {"compression": "tiff_deflate"}),
        ("lzw tiff", "TIFF", picture, {"compression": "tiff_lzw"}),
        ("jpeg tiff", "TIFF", picture, {"compression": "jpeg"}),
        ("many-page tiff", "TIFF", picture, turned()),
        ("float tiff", "TIFF", unit, {}),
        ("bmp", "BMP", picture, {}),
        ("webp", "WEBP", picture, {"exif": exif}),
        ("lossless webp", "WEBP", picture.convert("RGBA"), {"lossless": True}),
        ("animated webp", "WEBP", picture, turned()),
    ]
    files = {}
    for label, kind, image, options in kinds:
        buffer = io.BytesIO()
        image.copy().save(buffer, kind, **options)
        files[label] = buffer.getvalue()
    return files


def made_files(random_count: int, seed: int) -> Iterator[Made]:
    """Yield all files, deterministic for a seed."""
    files = valid_files()
    for label, data in files.items():
        yield f"valid {label}", data
        for length in sorted({*range(0, len(data), 1024), *range(min(len(data), 128)), len(data) - 1}):
            yield f"cut {label}", data[:length]
        for place in range(min(len(data), 160)):
            for change in (0x01, 0x80, 0xFF):
                yield f"header {label}", data[:place] + bytes([data[place] ^ change]) + data[place + 1 :]
        for junk in JUNK:
            yield f"junk behind {label}", data + junk
            yield f"junk before {label}", junk + data
            yield f"junk within {label}", data[: len(data) // 2] + junk + data[len(data) // 2 :]
    yield from absurd_dimensions(files)
    yield from bombs()
    yield from tiff_directories(files["tiff"])
    yield from frames()
    yield from random_changes(list(files.items()), random_count, np.random.default_rng(seed))


def absurd_dimensions(files: dict[str, bytes]) -> Iterator[Made]:
    """Replace width and height in the header, with a valid PNG checksum."""
    for width in ABSURD:
        for height in ABSURD:
            for label in ("png", "16-bit png", "animated png"):
                yield f"dimensions {label}", with_png_size(files[label], width, height)
            size = struct.pack("<ii", *(min(n, 2**31 - 1) for n in (width, height)))
            yield "dimensions bmp", files["bmp"][:18] + size + files["bmp"][26:]
            for label in ("jpeg", "progressive jpeg"):
                data = files[label]
                start = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
                size = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
                yield f"dimensions {label}", data[:start] + size + data[start + 4 :]
            yield "dimensions tiff", with_tiff_tags(files["tiff"], {256: width, 257: height})
            yield "strips tiff", with_tiff_tags(files["tiff"], {273: width, 279: height})
            size = struct.pack("<I", min(width, 2**24))[:3] + struct.pack("<I", min(height, 2**24))[:3]
            data = files["animated webp"]
            yield "dimensions webp", data[:24] + size + data[30:]


def with_png_size(data: bytes, width: int, height: int) -> bytes:
    """Replace the size in the PNG header: 8 bytes signature, 4 length, then name, contents and checksum."""
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def with_tiff_tags(data: bytes, values: dict[int, int]) -> bytes:
    """Replace the values of some tags in the first directory of a little-endian TIFF."""
    changed = bytearray(data)
    start = struct.unpack_from("<I", data, 4)[0]
    for number in range(struct.unpack_from("<H", data, start)[0]):
        entry = start + 2 + 12 * number
        tag = struct.unpack_from("<H", data, entry)[0]
        if tag in values:
            struct.pack_into("<HII", changed, entry + 2, 4, 1, values[tag])
    return bytes(changed)


def bombs() -> Iterator[Made]:
    """Yield small files of many pixels: below, at and far above the limit, and one that inflates without end."""
    for side in (2_000, 4_400, 4_500, 30_000, 65_000):
        for mode, depth in (("L", 0), ("RGB", 2), ("RGBA", 6)):
            row = b"\0" * (1 + side * len(mode))
            packer = zlib.compressobj(1)
            parts = [packer.compress(row) for _ in range(min(side, 4_500))]
            body = b"".join(parts) + packer.flush()
            yield (
                "bomb png",
                png([(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, depth, 0, 0, 0)), (b"IDAT", body)]),
            )
    endless = zlib.compress(b"\0" * 200_000_000, 9)
    small = struct.pack(">IIBBBBB", 10, 10, 8, 2, 0, 0, 0)
    yield "bomb png", png([(b"IHDR", small), (b"IDAT", endless)])
    for chunk in (b"iCCP", b"zTXt", b"iTXt"):
        head = b"x\0\0" if chunk != b"iTXt" else b"x\0\1\0\0\0"
        yield (
            "bomb in a text chunk",
            png([(b"IHDR", small), (chunk, head + endless), (b"IDAT", zlib.compress(b"\0" * 310))]),
        )


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Return a PNG of these chunks."""
    packed = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d))
        for n, d in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff_directories(data: bytes) -> Iterator[Made]:
    """Yield files whose directories loop, form chains of thousands, or nest."""
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    after = start + 2 + 12 * count
    for following in (start, 8, 1, len(data), 2**32 - 1):
        yield "tiff directories", data[:after] + struct.pack("<I", following) + data[after + 4 :]
    directory = data[start:after]
    for length in (10, 1000, 10_000):
        chain = bytearray(data[:after] + struct.pack("<I", len(data)) + data[after + 4 :])
        for number in range(length):
            following = 0 if number == length - 1 else len(chain) + len(directory) + 4
            chain += directory + struct.pack("<I", following)
        yield "tiff directories", bytes(chain)
    for tag in (330, 34665, 34853):  # SubIFDs, EXIF, GPS: each points to the directory it is in
        yield "nested tiff", with_tiff_tags(with_new_tag(data, start, count, tag), {tag: start})


def with_new_tag(data: bytes, start: int, count: int, tag: int) -> bytes:
    """Rename the last entry of the first directory."""
    place = start + 2 + 12 * (count - 1)
    return data[:place] + struct.pack("<H", tag) + data[place + 2 :]


def frames() -> Iterator[Made]:
    """Yield animations of many frames, complete and truncated."""
    tiles = [Image.new("RGB", (32, 32), (n % 256, n // 2, 9)) for n in range(400)]
    for kind in ("PNG", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        tiles[0].save(buffer, kind, save_all=True, append_images=tiles[1:])
        data = buffer.getvalue()
        for share in (1.0, 0.99, 0.5, 0.01):
            yield f"many frames {kind.lower()}", data[: int(len(data) * share)]


def random_changes(files: list[tuple[str, bytes]], count: int, random: np.random.Generator) -> Iterator[Made]:
    """Change 1 to 16 random bytes, half of the time near the start; sometimes move, duplicate or drop a block."""
    for _ in range(count):
        label, data = files[random.integers(len(files))]
        changed = bytearray(data)
        reach = len(data) if random.random() < 0.5 else min(len(data), 200)
        for place in random.integers(0, reach, random.integers(1, 17)):
            changed[place] = random.integers(256)
        if random.random() < 0.3:
            a, b, c = sorted(random.integers(0, len(data), 3))
            changed = [
                changed[:a] + changed[b:],
                changed[:b] + changed[a:],
                changed[:a] + changed[b:c] + changed[a:],
            ][random.integers(3)]
        yield f"random {label}", bytes(changed)


def decode_all(pipe: Any) -> None:
    """Decode incoming files in the child; answer with outcome, CPU seconds and the peak of memory so far."""
    warnings.simplefilter("ignore")
    outcome_of(next(iter(valid_files().values())))  # exclude late imports from the measurement
    before = peak_memory()
    pipe.send(("ready", 0.0, 0.0))
    while True:
        try:
            data = pipe.recv_bytes()
        except EOFError:  # the parent has no more
            return
        started = time.process_time()
        outcome = outcome_of(data)
        pipe.send((outcome, time.process_time() - started, peak_memory() - before))


class Decoder:
    """Child process that restarts after a crash."""

    def __init__(self) -> None:
        """Set up without starting the child."""
        self._context = multiprocessing.get_context("spawn")
        self._child: Any = None

    def decode(self, data: bytes) -> tuple[str, float, float]:
        """Return outcome, CPU seconds, and peak MB above the start."""
        if self._child is None:
            self._pipe, other = self._context.Pipe()
            self._child = self._context.Process(target=decode_all, args=(other,), daemon=True)
            self._child.start()
            other.close()  # otherwise the end of the child goes unnoticed
            self._pipe.recv()
        try:
            self._pipe.send_bytes(data)
            if self._pipe.poll(SECONDS_PER_FILE):
                found: tuple[str, float, float] = self._pipe.recv()
                return found
            outcome = f"hang: more than {SECONDS_PER_FILE} s"
        except (EOFError, OSError):
            self._child.join()
            outcome = f"crash: exit code {self._child.exitcode}"
        self._child.kill()
        self._child = None
        return outcome, SECONDS_PER_FILE, 0.0


def outcome_of(data: bytes) -> str:
    """Return the outcome: pixels, an ImageError, or a failure."""
    try:
        pixels = decode_image(data, name="fuzzed", max_pixels=MAX_PIXELS)
    except ImageError:
        return "clear error"
    except BaseException as error:  # the purpose of this script
        return f"other exception: {type(error).__name__}: {error}"
    fits = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    return "pixels" if fits and 0 < pixels.size <= 3 * MAX_PIXELS else f"wrong array {pixels.shape}"


def peak_memory() -> float:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Run the child, count outcomes, print and write results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--random", type=int, default=40_000, help="files with random changes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for fuzz_images.json")
    arguments = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    bad: list[str] = []
    slowest, most = ("", 0.0), ("", 0.0)
    decoder = Decoder()
    for number, (kind, data) in enumerate(made_files(arguments.random, arguments.seed)):
        outcome, seconds, memory = decoder.decode(data)
        label = f"file {number}, {kind}"
        counts[kind.split()[0], outcome.split(":")[0]] += 1
        slowest = max(slowest, (label, round(seconds, 2)), key=lambda pair: pair[1])
        most = max(most, (label, round(memory)), key=lambda pair: pair[1])
        if outcome not in ("pixels", "clear error"):
            bad.append(f"{label}: {outcome}")
    kinds = sorted({kind for kind, _ in counts})
    print("| change to valid files | files | pixels | clear error |\n|---|---|---|---|")
    for kind in kinds:
        own = {outcome: n for (k, outcome), n in counts.items() if k == kind}
        print(f"| {kind} | {sum(own.values())} | {own.get('pixels', 0)} | {own.get('clear error', 0)} |")
    record = {
        "provenance": provenance("python benchmarks/fuzz_images.py"),
        "files": sum(counts.values()),
        "pixels": sum(n for (_, outcome), n in counts.items() if outcome == "pixels"),
        "bad": bad,
        "slowest_cpu_seconds": slowest,
        "peak_memory_above_start": most,
    }
    print(record)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "fuzz_images.json").write_text(json.dumps(record, indent=1))
    return 1 if bad or most[1] > MEMORY_CAP else 0


if __name__ == "__main__":
    raise SystemExit(main())
