"""Whatever a file holds, decoding gives pixels or an ImageError, and never anything else."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from clipspect.data.decode import decode_image
from clipspect.errors import ImageError

PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (17, 23, 3), dtype=np.uint8))
EXIF = Image.Exif()
EXIF[0x0112] = 6
VALID = {}
for label, kind, image, options in [
    ("jpeg", "JPEG", PICTURE, {"exif": EXIF}),
    ("cmyk jpeg", "JPEG", PICTURE.convert("CMYK"), {}),
    ("multi-picture jpeg", "MPO", PICTURE, {"save_all": True, "append_images": [PICTURE]}),
    ("png", "PNG", PICTURE, {"exif": EXIF}),
    ("palette png", "PNG", PICTURE.convert("P"), {"transparency": 3}),
    ("16-bit png", "PNG", Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 150), {}),
    ("animated png", "PNG", PICTURE, {"save_all": True, "append_images": [PICTURE.rotate(180)]}),
    ("tiff", "TIFF", PICTURE, {"exif": EXIF}),
    ("deflate tiff", "TIFF", PICTURE, {"compression": "tiff_deflate"}),
    ("float tiff", "TIFF", Image.fromarray(np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)), {}),
    ("bmp", "BMP", PICTURE, {}),
    ("webp", "WEBP", PICTURE, {"exif": EXIF}),
    ("lossless webp", "WEBP", PICTURE.convert("RGBA"), {"lossless": True}),
]:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    VALID[label] = buffer.getvalue()


def check(data: bytes) -> bool:
    """Decode, and return whether there are pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow comments on damaged metadata
        try:
            pixels = decode_image(data, name="fuzzed", max_pixels=1_000_000)
        except ImageError:
            return False
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.flags.c_contiguous
    assert 0 < pixels.size <= 3_000_000
    return True


@pytest.mark.parametrize("label", VALID)
def test_every_truncation_of_a_valid_file_gives_pixels_or_an_image_error(label):
    data = VALID[label]
    assert check(data)
    assert not check(b"")
    for length in range(0, len(data), max(1, len(data) // 120)):
        check(data[:length])


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(54, 10_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_other_pixels_of_a_valid_file_are_read(changes):
    data = bytearray(VALID["bmp"])
    for place, value in changes:
        data[54 + place % (len(data) - 54)] = value  # behind the headers of 54 bytes
    assert check(bytes(data))


@pytest.mark.parametrize("label", VALID)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_of_a_valid_file_give_pixels_or_an_image_error(label, changes):
    data = bytearray(VALID[label])
    for place, value in changes:
        # half of the changes in the first bytes, where the headers are
        data[place % (min(len(data), 120) if place % 2 else len(data))] = value
    check(bytes(data))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
@example(b"BM" + b"\0" * 60)
@example(b"II*\0" + b"\xff" * 60)
def test_arbitrary_bytes_give_an_image_error(data):
    assert not check(data)
