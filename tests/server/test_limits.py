"""A file's type comes from its content and its size from its header, before anything is decoded."""

from __future__ import annotations

import struct
import zlib

import pytest

from server.conftest import photo

pytest.importorskip("pydantic", reason="the service's extra is not installed")

from clipspect.server.errors import ServiceError
from clipspect.server.limits import Limits, sniff


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_every_kind_is_told_by_its_content_and_passes(kind):
    data = photo(kind=kind)
    assert sniff(data) == kind
    Limits().check([data])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"%PDF-1.7" + bytes(40),
        b"%PDF-1.7",
        b"<svg/>",
        b"\x80\x04\x95pickle",
        b"PK\x03\x04",
        b"RIFF1234WAVE",
    ],
)
def test_anything_else_is_415(data):
    with pytest.raises(ServiceError) as refused:
        Limits().check([data])
    assert (refused.value.status, refused.value.code) == (415, "not_an_image")


def test_a_small_file_that_claims_many_pixels_is_refused_from_its_header():
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb += chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    assert len(bomb) < 100
    with pytest.raises(ServiceError) as refused:
        Limits().check([bomb])
    assert (refused.value.status, refused.value.code) == (413, "too_many_pixels")


def test_pixels_bytes_and_count_have_limits_of_their_own():
    data = photo(size=(60, 80))
    Limits(pixels=4800).check([data])
    for limits, code in [
        (Limits(pixels=4799), "too_many_pixels"),
        (Limits(image_mb=len(data) / 1e6 - 1e-6), "too_large"),
        (Limits(images=1), "too_many"),
    ]:
        with pytest.raises(ServiceError) as refused:
            limits.check([data, data])
        assert (refused.value.status, refused.value.code) == (413, code)


def test_a_broken_header_is_422():
    with pytest.raises(ServiceError) as refused:
        Limits().check([b"\x89PNG\r\n\x1a\n" + b"no chunk at all"])
    assert (refused.value.status, refused.value.code) == (422, "damaged")
