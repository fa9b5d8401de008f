"""Formats beside TIFF: deep PNG, animations, and those of an extra."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from imagecodecs import png_encode
from PIL import Image

from clipspect.data import formats
from clipspect.data.convert import to_pixels
from clipspect.data.decode import decode
from clipspect.data.prepare import ImageLoader
from clipspect.data.ranges import ValueRange
from clipspect.data.transforms import ResizeSpec
from clipspect.errors import ImageError, UsageError

COLOUR = np.zeros((40, 64, 3), np.uint8)
COLOUR[:20, :32], COLOUR[20:, :32], COLOUR[:, 32:] = (250, 10, 10), (10, 10, 250), (30, 200, 30)
PICTURE = Image.fromarray(COLOUR)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_png_of_16_bits_keeps_them_in_colour_too():
    deep = COLOUR.astype(np.uint16) * 257
    opaque = np.full((40, 64, 1), 65535, np.uint16)
    for values in (deep, np.dstack([deep, opaque])):
        np.testing.assert_array_equal(decode(png_encode(values), name="a").pixels, COLOUR)
    told = decode(png_encode(COLOUR.astype(np.uint16) * 16), name="a")
    assert (told.pixels.max(), "--bit-depth 12" in told.notes[0]) == (16, True)
    given = decode(png_encode(COLOUR.astype(np.uint16) * 16), name="a", value_range=ValueRange(bit_depth=12))
    assert np.abs(given.pixels.astype(int) - COLOUR).max() <= 1


@pytest.mark.parametrize("write", [lambda deep: encoded(Image.fromarray(deep), "PNG"), png_encode])
def test_png_of_16_bits_with_values_of_8_is_not_black(write):
    decoded = decode(write(COLOUR[:, :, 0].astype(np.uint16)), name="a")
    np.testing.assert_array_equal(decoded.pixels, COLOUR[:, :, :1].repeat(3, axis=2))
    assert "read as 8 bits" in decoded.notes[0]


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    chunk = kind + body
    return png[:33] + struct.pack(">I", len(body)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_significant_bits_of_png_declare_values_that_are_stored_unscaled(bits, bands):
    opaque = np.full((40, 64, 1), 255, np.uint8)
    eight = np.dstack([COLOUR, opaque])[:, :, :bands]
    values = (eight.astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16).squeeze()
    for stored in (values, values << (16 - bits)):
        decoded = decode(with_chunk(png_encode(stored), b"sBIT", bytes([bits] * bands)), name="a")
        assert np.abs(decoded.pixels.astype(int) - COLOUR[:, :, : min(bands, 3)]).max() <= 1
        assert decoded.notes == ()


def test_a_transparent_colour_of_a_deep_png_is_composited_on_white():
    for values, colour in (
        (COLOUR.astype(np.uint16) * 257, COLOUR[0, 0]),
        (COLOUR[:, :, 0].astype(np.uint16) * 257, COLOUR[0, 0, :1]),
    ):
        stored = b"".join(struct.pack(">H", int(value) * 257) for value in colour)
        pixels = decode(with_chunk(png_encode(values), b"tRNS", stored), name="a").pixels
        assert (pixels[0, 0] == 255).all()
        assert (pixels[-1, -1] == values[-1, -1] // 257).all()


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_the_first_frame_of_an_animation_is_read_and_told(kind, options):
    data = encoded(PICTURE, kind, save_all=True, append_images=[PICTURE.rotate(180)], **options)
    decoded = decode(data, name="a")
    np.testing.assert_array_equal(decoded.pixels, COLOUR)
    assert "2 pages or frames; only the first was read" in decoded.notes[0]
    second = decode(data, name="a", page=1)
    np.testing.assert_array_equal(second.pixels, COLOUR[::-1, ::-1])
    assert second.notes == ()


def test_a_still_gif_is_read_without_a_note():
    decoded = decode(encoded(PICTURE.quantize(8), "GIF"), name="a")
    np.testing.assert_array_equal(decoded.pixels, COLOUR)
    assert decoded.notes == ()


def test_arrays_follow_the_bit_depth_and_tell_their_note():
    values = COLOUR.astype(np.uint16) * 16
    assert np.abs(to_pixels(values, value_range=ValueRange(bit_depth=12)).astype(int) - COLOUR).max() <= 1
    read = ImageLoader(ResizeSpec(32)).read(values, "a")
    assert "bit_depth=12" in read.notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bit_depth": 12, "window": (0, 1)}, "use one of them"),
        ({"bit_depth": 3}, "8 to 32"),
        ({"window": (5, 5)}, "below the second"),
        ({"window": (0, float("nan"))}, "below the second"),
    ],
)
def test_impossible_ranges_are_wrong_usage(options, message):
    with pytest.raises(UsageError, match=message):
        ValueRange(**options)


@pytest.mark.parametrize(
    ("kind", "extra"), [("HEIF", formats.HEIC), ("AVIF", formats.AVIF), ("JXL", formats.JPEG_XL)]
)
def test_formats_of_an_extra_are_read_upright(kind, extra):
    pytest.importorskip(extra.module)
    formats.need(extra, "a")
    if kind == "AVIF":
        pytest.importorskip("PIL._avif")
    options = {"lossless": True} if kind == "JXL" else {"quality": 100}
    assert (
        np.abs(
            decode(encoded(PICTURE, kind, **options), name="a").pixels[5, 5].astype(int) - COLOUR[5, 5]
        ).max()
        < 8
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encoded(PICTURE, kind, exif=exif.tobytes(), **options), name="a").pixels
    assert turned.shape == (64, 40, 3)
    assert np.abs(turned[5, 5].astype(int) - (10, 10, 250)).max() < 8


@pytest.mark.parametrize(
    ("data", "extra", "title"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99, "heif", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + b"\0" * 99, "heif", "AVIF"),
        (b"\xff\x0a" + b"\0" * 200, "jxl", "JPEG XL"),
        (b"\0" * 128 + b"DICM" + b"\0" * 99, "dicom", "DICOM"),
    ],
)
def test_without_its_extra_the_error_names_it(monkeypatch, data, extra, title):
    monkeypatch.setattr(formats, "_can_read", lambda wanted: False)
    with pytest.raises(ImageError, match=rf"is a {title} image.*clipspect\[{extra}\]"):
        decode(data, name="a")


def dicom(values: np.ndarray, photometric: str = "MONOCHROME2", bits: int = 12, **elements: object) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset.Rows, dataset.Columns = values.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


RAMP = np.array([[0, 1000, 2000, 4095]], np.uint16).repeat(2, axis=0)


@pytest.mark.parametrize(
    ("data", "value_range", "expected"),
    [
        ((RAMP,), ValueRange(), [0, 62, 125, 255]),
        ((RAMP, "MONOCHROME1"), ValueRange(), [255, 193, 130, 0]),
        ((RAMP, "MONOCHROME2", 12, ("1000", "2000")), ValueRange(), [0, 128, 255, 255]),
        ((RAMP, "MONOCHROME2", 12, ("0", "2000"), -1000), ValueRange(), [0, 128, 255, 255]),
        (
            (RAMP, "MONOCHROME2", 12, ("0", "2000"), -1000),
            ValueRange(window=(-1000, 3095)),
            [0, 62, 125, 255],
        ),
        ((RAMP.astype(np.int16) - 2048,), ValueRange(), [0, 62, 125, 255]),
    ],
    ids=["stored bits", "monochrome1", "window", "rescaled window", "window of the run", "signed"],
)
def test_dicom_window_rescale_and_photometric_are_honoured(data, value_range, expected):
    values, *more = data
    photometric = more[0] if more else "MONOCHROME2"
    elements = {}
    if len(more) > 2:
        elements |= {"WindowCenter": more[2][0], "WindowWidth": more[2][1]}
    if len(more) > 3:
        elements |= {"RescaleIntercept": more[3], "RescaleSlope": 1}
    pixels = decode(dicom(values, photometric, **elements), name="a", value_range=value_range).pixels
    assert pixels[0, :, 1].tolist() == expected


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"RescaleSlope": -1, "RescaleIntercept": 4095}, [255, 193, 130, 0]),
        ({"RescaleSlope": 2, "RescaleIntercept": -100}, [0, 62, 125, 255]),
        ({"WindowCenter": "", "WindowWidth": ""}, [0, 62, 125, 255]),
        ({"WindowWidth": "100"}, [0, 62, 125, 255]),
    ],
    ids=["negative slope", "slope", "empty window", "half a window"],
)
def test_dicom_without_a_window_shows_the_range_of_its_bits(elements, expected):
    decoded = decode(dicom(RAMP, **elements), name="a")
    assert decoded.pixels[0, :, 1].tolist() == expected
    assert "no window" in decoded.notes[0]


def test_the_first_frame_of_several_in_dicom_is_told():
    decoded = decode(dicom(np.stack([RAMP, RAMP[:, ::-1]]), NumberOfFrames=2), name="a")
    assert any("2 pages or frames" in note for note in decoded.notes)
    data = dicom(np.stack([RAMP, RAMP[:, ::-1]]), NumberOfFrames=2)
    assert decode(data, name="a", page=1).pixels[0, :, 0].tolist() == [255, 125, 62, 0]


def test_every_truncation_of_a_dicom_file_is_pixels_or_an_image_error():
    data = dicom(RAMP)
    for length in range(0, len(data), 29):
        try:
            decode(data[:length], name="a")
        except ImageError:
            continue
