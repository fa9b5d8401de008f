"""Image files become upright RGB, and everything that cannot be one becomes an ImageError."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipspect.data.decode import MAX_PIXELS, decode_image, hash_file, read_image
from clipspect.data.prepare import ImageLoader
from clipspect.data.transforms import ResizeSpec
from clipspect.errors import ImageError

RNG = np.random.default_rng(7)
COLOUR = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_give_the_pixels_that_were_saved(kind, options):
    pixels = decode_image(encoded(Image.fromarray(COLOUR), kind, **options), name="a")
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, COLOUR)


def test_jpeg_gives_nearly_the_pixels_that_were_saved():
    smooth = np.tile(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (40, 1, 3))
    pixels = decode_image(encoded(Image.fromarray(smooth), "JPEG", quality=95), name="a")
    assert np.abs(pixels.astype(int) - smooth).max() <= 4


def test_the_content_tells_the_format_whatever_the_file_is_called(tmp_path: Path):
    path = tmp_path / "photo.bmp"
    path.write_bytes(encoded(Image.fromarray(COLOUR), "PNG"))
    np.testing.assert_array_equal(decode_image(path, name="photo.bmp"), COLOUR)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_by_its_full_range(kind):
    grey = np.array([[0, 257, 128 * 257], [65535, 1000, 64]], np.uint16)
    pixels = decode_image(encoded(Image.fromarray(grey), kind), name="a")
    np.testing.assert_array_equal(pixels[:, :, 0], [[0, 1, 128], [255, 4, 0]])
    assert (pixels == pixels[:, :, :1]).all()


def test_float_tiff_within_zero_and_one_is_multiplied_by_255():
    grey = np.array([[0.0, 0.5], [1.0, 0.1]], np.float32)
    pixels = decode_image(encoded(Image.fromarray(grey), "TIFF"), name="a")
    np.testing.assert_array_equal(pixels[:, :, 1], [[0, 128], [255, 26]])


@pytest.mark.parametrize("values", [[[0.0, 200.0]], [[0.1, float("nan")]], [[float("inf"), 0.0]]])
def test_float_tiff_of_another_range_is_refused_with_the_wanted_one(values):
    with pytest.raises(ImageError, match=r"within \[0, 1\]"):
        decode_image(encoded(Image.fromarray(np.array(values, np.float32)), "TIFF"), name="a.tif")


def test_32_bit_tiff_is_read_as_16_bits_or_refused():
    fits = Image.fromarray(np.array([[0, 65535]], np.int32))
    np.testing.assert_array_equal(decode_image(encoded(fits, "TIFF"), name="a")[:, :, 0], [[0, 255]])
    with pytest.raises(ImageError, match="8 or 16 bits"):
        decode_image(encoded(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"), name="a")


def test_one_bit_pictures_are_black_and_white():
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decode_image(encoded(bits, "PNG"), name="a")[:, :, 2], [[0, 255], [255, 0]])


def test_transparency_is_composited_on_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = [255, 0, 51]
    pixels = decode_image(encoded(Image.fromarray(rgba), "PNG"), name="a")
    np.testing.assert_array_equal(pixels[0], [[200, 0, 0], [255, 255, 255], [244, 204, 204]])


def test_grey_with_transparency_is_composited_on_white():
    grey_alpha = np.array([[[10, 255], [10, 0]]], np.uint8)
    pixels = decode_image(encoded(Image.fromarray(grey_alpha, "LA"), "PNG"), name="a")
    np.testing.assert_array_equal(pixels[0], [[10] * 3, [255] * 3])


def test_palette_with_a_transparent_colour_is_composited_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    pixels = decode_image(encoded(palette, "PNG", transparency=1), name="a")
    np.testing.assert_array_equal(pixels[0], [[255, 0, 0], [255, 255, 255]])


def test_cmyk_jpeg_and_lab_tiff_become_rgb():
    red = Image.new("RGB", (16, 16), (220, 30, 30))
    for data in (
        encoded(red.convert("CMYK"), "JPEG", quality=95),
        encoded(red.convert("CMYK"), "TIFF"),
        encoded(
            red.convert("YCbCr"), "TIFF", compression="tiff_lzw"
        ),  # Pillow 12 cannot read its own raw ones
    ):
        assert np.abs(decode_image(data, name="a")[8, 8].astype(int) - [220, 30, 30]).max() < 25
    lab = Image.merge("LAB", [Image.new("L", (4, 4), v) for v in (128, 128, 128)])
    assert np.ptp(decode_image(encoded(lab, "TIFF"), name="a")[0, 0].astype(int)) < 12  # a = b = 0 is grey


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright_after_exif_orientation(kind, orientation):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16] = (255, 0, 0)  # red at the top left
    upright[16:, :16] = (0, 0, 255)  # blue at the bottom left
    undo = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(upright)))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    pixels = decode_image(encoded(stored, kind, exif=exif, **options), name="a")
    assert pixels.shape == upright.shape
    assert pixels[8, 8, 0] > 200
    assert pixels[24, 8, 2] > 200
    assert pixels[:, 32:].max() < 40


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_the_first_frame_of_several_is_read(kind):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0)))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    assert decode_image(data, name="a")[4, 4].tolist() == [250, 0, 0]


def test_the_main_picture_of_a_multi_picture_jpeg_is_read():
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0)))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert decode_image(data, name="a")[4, 4, 0] > 240


def test_one_pixel_is_an_image():
    assert decode_image(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), name="a").tolist() == [
        [[1, 2, 3]]
    ]


def test_read_image_gives_the_hash_of_the_very_bytes_it_decoded(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(COLOUR), "PNG"))
    pixels, digest = read_image(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == hash_file(path)
    np.testing.assert_array_equal(pixels, COLOUR)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.png", None, "no such file"),
        ("empty.png", b"", r"empty \(0 bytes\)"),
        ("notes.png", b"hello, I am a text", "not a JPEG, PNG, TIFF, BMP, WebP or GIF"),
        ("page.jpg", b"<html>" * 100, "not a JPEG"),
    ],
)
def test_what_is_no_image_says_which_file_and_what_to_do(tmp_path: Path, name, content, reason):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(path)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "keep"), [("JPEG", 0.5), ("PNG", 0.5), ("TIFF", 0.5), ("BMP", 0.9), ("WEBP", 0.5)]
)
def test_a_truncated_file_of_any_format_is_an_error_and_not_half_an_image(kind, keep):
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(ImageError, match="copy|convert"):
        decode_image(data[: int(len(data) * keep)], name="a")


def test_a_folder_and_a_null_byte_in_a_path_are_errors(tmp_path: Path):
    with pytest.raises(ImageError, match="is a folder"):
        decode_image(tmp_path, name="a")
    with pytest.raises(ImageError, match="a"):
        decode_image(Path("a\0b.png"), name="a")


def test_an_unreadable_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    monkeypatch.setattr(Path, "read_bytes", lambda self: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.raises(ImageError, match="permission"):
        decode_image(path, name="a.png")


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(30_000, 30_000), (10_001, 10_000), (100_000_001, 1)])
def test_too_many_pixels_are_refused_from_the_header_naming_the_limit(size):
    assert MAX_PIXELS == 100_000_000
    with pytest.raises(ImageError, match="100,000,000"):
        decode_image(png_header(*size), name="bomb.png")


def test_no_pixels_at_all_are_refused():
    with pytest.raises(ImageError):
        decode_image(png_header(0, 10), name="a.png")


def test_the_limit_can_be_set():
    data = encoded(Image.fromarray(COLOUR), "PNG")
    with pytest.raises(ImageError, match="20 × 12 is 240 pixels, more than the limit of 239"):
        decode_image(data, name="a", max_pixels=239)
    assert decode_image(data, name="a", max_pixels=240).shape == (12, 20, 3)


def test_a_raised_limit_raises_pillow_s_own(monkeypatch: pytest.MonkeyPatch):
    data = encoded(Image.fromarray(COLOUR), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # from 201 pixels on it refuses
    with pytest.raises(ImageError, match="more than 150 pixels.*--max-pixels"):
        decode_image(data, name="a", max_pixels=150)
    assert decode_image(data, name="a", max_pixels=240).shape == (12, 20, 3)


def test_the_limit_of_a_reader_is_that_of_arrays_too():
    reader = ImageLoader(ResizeSpec(32), max_pixels=239)
    with pytest.raises(ImageError, match="240 pixels, more than the limit of 239"):
        reader.read(COLOUR, "a")
    assert ImageLoader(ResizeSpec(32), max_pixels=240).read(COLOUR, "a").pieces.shape == (1, 32, 32, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_image():
    data = encoded(Image.fromarray(COLOUR), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12broken")
    np.testing.assert_array_equal(decode_image(data, name="a"), COLOUR)
