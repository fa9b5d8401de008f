"""TIFF files of every depth, photometric and layout give the values that were written."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile

from clipspect.data.decode import Decoded, decode, load_image
from clipspect.data.ranges import FILE_RANGE, ValueRange
from clipspect.errors import ImageError
from helpers.cases import CASES

RNG = np.random.default_rng(5)
COLOUR = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
COLOUR[0, 0], COLOUR[0, 1] = 0, 255
GREY = COLOUR[:, :, 0]
DEEP = COLOUR.astype(np.uint16) * 257


def read(values: np.ndarray, value_range: ValueRange = FILE_RANGE, **options: object) -> Decoded:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return decode(buffer.getvalue(), name="a.tif", value_range=value_range)


def assert_grey(decoded: Decoded, grey: np.ndarray = GREY, tolerance: int = 0) -> None:
    assert decoded.pixels.shape == (*grey.shape, 3)
    assert np.abs(decoded.pixels.astype(int) - grey[:, :, None]).max() <= tolerance


def test_declared_12_bits_span_the_whole_range():
    decoded, _ = load_image(CASES / "bits12.tif")
    assert decoded.notes == ()
    assert (decoded.pixels.min(), decoded.pixels.max()) == (0, round(4064 / 4095 * 255))


@pytest.mark.parametrize(("top", "bits"), [(1000, 10), (4064, 12), (16000, 14)])
def test_undeclared_depth_is_told_and_can_be_given(top, bits):
    values = np.linspace(300, top, 2400).astype(np.uint16).reshape(40, 60)
    decoded = read(values)
    assert decoded.pixels.max() == round(top / 65535 * 255)
    (note,) = decoded.notes
    assert f"--bit-depth {bits}" in note
    told = read(values, ValueRange(bit_depth=bits))
    assert (told.pixels.max(), told.notes) == (round(top / (2**bits - 1) * 255), ())
    window = read(values, ValueRange(window=(300, top)))
    assert (window.pixels.min(), window.pixels.max(), window.notes) == (0, 255, ())
    with pytest.raises(ImageError, match=r"bit depth 9 ends at 511; raise it"):
        read(values, ValueRange(bit_depth=9))


@pytest.mark.parametrize(
    "declaration",
    [
        lambda bits: {"extratags": [(281, "H", 1, 2**bits - 1, True)]},
        lambda bits: {"extratags": [(341, "H", 1, 2**bits - 1, True)]},
        lambda bits: {"ome": True, "metadata": {"axes": "YX", "SignificantBits": bits}},
    ],
    ids=["MaxSampleValue", "SMaxSampleValue", "OME"],
)
@pytest.mark.parametrize("bits", [9, 10, 12, 14])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_depths_that_metadata_declare_are_honoured(declaration, bits, photometric):
    values = (GREY.astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16)
    decoded = read(values, photometric=photometric, **declaration(bits))
    assert_grey(decoded, GREY if photometric == "minisblack" else 255 - GREY, 1)
    assert decoded.notes == ()
    given = read(values, ValueRange(bit_depth=16), photometric=photometric, **declaration(bits))
    assert np.ptp(given.pixels) == round((2**bits - 1) / 257)


@pytest.mark.parametrize("highest", [900, 3000, 511])
def test_a_statistic_is_no_declared_depth(highest):
    values = np.linspace(0, 3000, 2400).astype(np.uint16).reshape(40, 60)
    decoded = read(values, extratags=[(281, "H", 1, highest, True)])
    assert decoded.pixels.max() == round(3000 / 65535 * 255)
    assert "--bit-depth 12" in decoded.notes[0]


def test_full_16_bits_give_no_note():
    assert read(DEEP[:, :, 0]).notes == ()


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.int32, np.int16])
def test_values_of_8_bits_in_a_deeper_file_are_not_black(kind):
    decoded = read(GREY.astype(kind))
    assert_grey(decoded)
    assert "read as 8 bits" in decoded.notes[0]
    assert read(GREY.astype(np.uint16), ValueRange(bit_depth=16)).pixels.max() == 1


def test_signed_values_span_their_positive_range():
    ramp = np.linspace(0, 32767, 2400).astype(np.int16).reshape(40, 60)
    assert_grey(read(ramp), np.round(ramp / 32767 * 255))
    small = np.linspace(0, 127, 2400).astype(np.int8).reshape(40, 60)
    assert_grey(read(small), np.floor(small / 127 * 255 + 0.5))


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
def test_negative_values_ask_for_a_window(kind):
    ramp = np.linspace(-100, 100, 2400).astype(kind).reshape(40, 60)
    with pytest.raises(ImageError, match=r"signed values from -100 to 100; .*--window low,high"):
        read(ramp)
    assert_grey(read(ramp, ValueRange(window=(-100, 100))), np.round((ramp + 100.0) / 200 * 255), 1)


@pytest.mark.parametrize(
    "values",
    [255 - GREY, 65535 - DEEP[:, :, 0], (1 - GREY / 255).astype(np.float32), 1 - GREY / 255],
    ids=["8 bits", "16 bits", "float32", "float64"],
)
def test_white_is_zero_is_inverted_at_every_depth(values):
    assert_grey(read(values, photometric="miniswhite"))


def test_white_is_zero_of_one_bit():
    assert_grey(read(GREY > 127, photometric="miniswhite"), np.where(GREY > 127, 0, 255))


@pytest.mark.parametrize("values", [COLOUR, DEEP], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
def test_planar_colours_keep_their_geometry(values, compression):
    planes = np.moveaxis(values, -1, 0)
    decoded = read(planes, photometric="rgb", planarconfig="separate", compression=compression)
    np.testing.assert_array_equal(decoded.pixels, COLOUR)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_byte_orders_and_bigtiff(byteorder, bigtiff):
    decoded = read(DEEP, photometric="rgb", byteorder=byteorder, bigtiff=bigtiff)
    np.testing.assert_array_equal(decoded.pixels, COLOUR)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_of_one_and_three_bands(kind):
    np.testing.assert_array_equal(read((COLOUR / 255).astype(kind), photometric="rgb").pixels, COLOUR)
    assert_grey(read((GREY / 255).astype(kind)))
    with pytest.raises(ImageError, match=r"within \[0, 1\]; pass --window low,high"):
        read(GREY.astype(kind))
    assert_grey(read(GREY.astype(kind), ValueRange(window=(0, 255))))


@pytest.mark.parametrize(
    ("bands", "photometric", "note"),
    [
        ([0, 1, 2, 0, 1], "minisblack", "5 bands; bands 4, 5 were not read"),
        ([0, 1, 2, 0, 1], "rgb", "5 bands; bands 4, 5 were not read"),
        ([0, 1, 2, 0], "rgb", "4 bands; band 4 was not read"),
    ],
)
def test_further_bands_are_left_out_and_named(bands, photometric, note):
    extra = ["unspecified"] * (len(bands) - 3) if photometric == "rgb" else None
    decoded = read(COLOUR[:, :, bands], photometric=photometric, planarconfig="contig", extrasamples=extra)
    np.testing.assert_array_equal(decoded.pixels, COLOUR)
    assert note in decoded.notes[0]


def test_declared_transparency_is_composited_on_white():
    alpha = np.zeros((40, 60, 1), np.uint8)
    clear = read(np.dstack([COLOUR, alpha]), photometric="rgb", extrasamples=["unassalpha"])
    assert (clear.pixels == 255).all()
    half = read(np.dstack([COLOUR // 2, alpha + 127]), photometric="rgb", extrasamples=["assocalpha"])
    np.testing.assert_array_equal(half.pixels, COLOUR // 2 + 128)
    deep = np.dstack([DEEP // 16, np.full((40, 60), 65535, np.uint16)])
    told = read(deep, ValueRange(bit_depth=12), photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(told.pixels, COLOUR)


def test_a_palette_gives_its_colours():
    palette = np.zeros((3, 256), np.uint16)
    palette[0], palette[1] = np.arange(256) * 257, 65535 - np.arange(256) * 257
    decoded = read(GREY, photometric="palette", colormap=palette)
    np.testing.assert_array_equal(decoded.pixels, np.dstack([GREY, 255 - GREY, GREY * 0]))


@pytest.mark.parametrize("compression", ["lzw", "deflate", "zstd", "jpeg2000", "packbits"])
@pytest.mark.parametrize("values", [COLOUR, DEEP], ids=["8 bits", "16 bits"])
def test_tiles_of_every_compression(compression, values):
    decoded = read(values, photometric="rgb", compression=compression, tile=(16, 16))
    np.testing.assert_array_equal(decoded.pixels, COLOUR)


def test_jpeg_compression_keeps_its_colours():
    smooth = np.zeros((32, 32, 3), np.uint8) + np.array([200, 100, 40], np.uint8)
    decoded = read(smooth, photometric="rgb", compression="jpeg")
    assert np.abs(decoded.pixels.astype(int) - smooth).max() <= 3


def test_the_first_page_of_several_is_read_and_told_and_each_has_a_name():
    decoded, digest = load_image(CASES / "multipage.tif")
    assert "3 pages" in decoded.notes[0]
    pages = [load_image(CASES / f"multipage.tif#{number}") for number in (1, 2, 3)]
    assert [page.notes for page, _ in pages] == [()] * 3
    np.testing.assert_array_equal(pages[0][0].pixels, decoded.pixels)
    assert (pages[1][0].pixels != decoded.pixels).any()
    assert len({digest, *(own for _, own in pages)}) == 4
    with pytest.raises(ImageError, match="has 3 pages, and page 4 was asked for"):
        load_image(CASES / "multipage.tif#4")


def test_thumbnails_are_no_pages_and_stacks_of_imagej_are():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(COLOUR[::4, ::4], photometric="rgb", subfiletype=1)
        file.write(COLOUR, photometric="rgb")
    decoded = decode(buffer.getvalue(), name="a")
    np.testing.assert_array_equal(decoded.pixels, COLOUR)
    assert decoded.notes == ()
    stack = read(np.stack([GREY, 255 - GREY, GREY]), imagej=True)
    assert_grey(stack)
    assert "3 pages" in stack.notes[0]


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_missing_data_are_an_error_and_not_black(compression):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, COLOUR, photometric="rgb", compression=compression, rowsperstrip=4)
    with pytest.raises(ImageError, match="cut short"):
        decode(buffer.getvalue()[:-100], name="a")


def test_the_cases_are_read_right():
    planar = load_image(CASES / "rgb16_planar.tif")[0].pixels
    with tifffile.TiffFile(CASES / "rgb16_planar.tif") as file:
        planes = np.moveaxis(file.pages[0].asarray(), 0, -1)
    np.testing.assert_array_equal(planar, (planes.astype(np.uint32) + 128) // 257)
    inverted = load_image(CASES / "g16_minwhite.tif")[0].pixels
    with tifffile.TiffFile(CASES / "g16_minwhite.tif") as file:
        assert_grey(Decoded(inverted), 255 - (file.pages[0].asarray().astype(np.uint32) + 128) // 257)
