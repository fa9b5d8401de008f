"""Pictures in memory become the pixels their file would give, or say which shape and range is wanted."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from clipspect.data.convert import hash_pixels, to_pixels
from clipspect.data.decode import decode_image
from clipspect.errors import ImageError

RNG = np.random.default_rng(11)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = COLOUR[:, :, 0]


def test_uint8_arrays_keep_their_values():
    np.testing.assert_array_equal(to_pixels(COLOUR), COLOUR)
    for grey in (GREY, GREY[:, :, None]):
        np.testing.assert_array_equal(to_pixels(grey), np.repeat(GREY[:, :, None], 3, axis=2))
    assert to_pixels(COLOUR[:, ::-1]).flags.c_contiguous


def test_the_fourth_channel_is_transparency_over_white():
    rgba = np.dstack([COLOUR, np.zeros((5, 7), np.uint8)])
    assert (to_pixels(rgba) == 255).all()
    rgba[:, :, 3] = 255
    np.testing.assert_array_equal(to_pixels(rgba), COLOUR)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_within_zero_and_one_become_the_nearest_byte(dtype):
    tolerance = 1 if dtype == np.float16 else 0
    pixels = to_pixels((COLOUR / 255).astype(dtype))
    assert np.abs(pixels.astype(int) - COLOUR).max() <= tolerance


def test_uint16_is_scaled_by_its_full_range():
    np.testing.assert_array_equal(to_pixels(COLOUR.astype(np.uint16) * 257), COLOUR)
    np.testing.assert_array_equal(to_pixels((COLOUR.astype(np.uint16) * 257).astype(">u2")), COLOUR)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad):
    values = np.full((4, 4), 0.5)
    values[1, 2] = bad
    with pytest.raises(ImageError, match="NaN or infinite"):
        to_pixels(values)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 5), np.uint8), r"got shape \(3, 4, 5\) of uint8; wanted is \(H, W\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"got shape \(2, 4, 5, 3\)"),
        (np.zeros(9, np.uint8), r"got shape \(9,\)"),
        (np.zeros((4, 4), np.int64), "of int64; wanted"),
        (np.zeros((4, 4), bool), "of bool; wanted"),
        (np.zeros((4, 4), complex), "of complex128; wanted"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.zeros((4, 0, 3), np.float32), "no pixels"),
        (np.full((4, 4), 200.0), r"values from 200 to 200; wanted .* \[0, 1\]"),
        (np.full((4, 4), -0.5), "values from -0.5"),
        ("photo.png", "cannot read a str"),
    ],
)
def test_wrong_shapes_types_and_ranges_say_what_is_wanted(array, message):
    with pytest.raises(ImageError, match=message):
        to_pixels(array)


def test_tensors_are_read_channels_first_or_last():
    first = torch.from_numpy(COLOUR).permute(2, 0, 1)
    np.testing.assert_array_equal(to_pixels(first), COLOUR)
    np.testing.assert_array_equal(to_pixels(torch.from_numpy(COLOUR)), COLOUR)
    np.testing.assert_array_equal(to_pixels(first.float().requires_grad_() / 255), COLOUR)
    halves = to_pixels(torch.full((3, 4, 4), 0.5, dtype=torch.bfloat16))
    np.testing.assert_array_equal(halves, np.full((4, 4, 3), 128, np.uint8))
    np.testing.assert_array_equal(to_pixels(first[:1]), np.repeat(GREY[:, :, None], 3, axis=2))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 3, 4, 4),
        torch.zeros(4, 4),
        torch.zeros(2, 5, 6),
        torch.zeros(3, 4, 4).to_sparse(),
    ],
)
def test_other_tensors_say_which_shape_is_wanted(tensor):
    with pytest.raises(ImageError, match=r"wanted is one image \(3, H, W\)"):
        to_pixels(tensor)


def test_a_pillow_image_gives_what_its_file_gives():
    exif = Image.Exif()
    exif[0x0112] = 8
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, "PNG", exif=exif)
    opened = Image.open(io.BytesIO(buffer.getvalue()))
    np.testing.assert_array_equal(to_pixels(opened), decode_image(buffer.getvalue(), name="a"))
    assert to_pixels(Image.open(io.BytesIO(buffer.getvalue()))).shape == (7, 5, 3)


def test_a_damaged_pillow_image_is_an_image_error():
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    with pytest.raises(ImageError, match="cut short"):
        to_pixels(Image.open(io.BytesIO(buffer.getvalue()[:2000])))


def test_the_hash_of_a_picture_depends_on_its_pixels_and_its_shape():
    assert hash_pixels(COLOUR) == hash_pixels(COLOUR.copy())
    assert hash_pixels(COLOUR) != hash_pixels(COLOUR.reshape(7, 5, 3))
    assert hash_pixels(COLOUR) != hash_pixels(255 - COLOUR)
