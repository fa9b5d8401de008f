"""Sources: copies of an image are the same image, other images of the same part are not."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from clipspect.backbones.sources import Sources
from clipspect.data.prepare import ImageLoader
from clipspect.data.transforms import ResizeSpec
from clipspect.demo import DEMO_IMAGES
from clipspect.tensors import sources_of

DEMO = sorted(DEMO_IMAGES.glob("*.jpg"))
READER = ImageLoader(ResizeSpec(64))


def prepare(paths):
    return [READER.read(path) for path in paths]


def saved_again(path, quality, scale=1.0):
    with Image.open(path) as image:
        image = image.resize((round(image.width * scale), round(image.height * scale)))
        data = io.BytesIO()
        image.convert("RGB").save(data, "JPEG", quality=quality)
    return READER.read(data.getvalue())


@pytest.mark.parametrize(("quality", "scale"), [(30, 1), (50, 1), (75, 1), (95, 1), (90, 0.75)])
def test_an_image_saved_again_is_the_same_image(quality, scale):
    originals = sources_of(prepare(DEMO))
    copies = sources_of([saved_again(path, quality, scale) for path in DEMO])
    assert torch.equal(copies.same_image(originals), torch.eye(len(DEMO), dtype=torch.bool))


@pytest.mark.parametrize("levels", [-2, -1, 1, 2])
def test_an_image_slightly_brighter_or_darker_is_the_same_image(levels):
    originals = prepare(DEMO)
    copies = [
        READER.read(np.clip(one.pixels() + float(levels), 0, 255).astype(np.uint8)) for one in originals
    ]
    expected = torch.eye(len(DEMO), dtype=torch.bool)
    assert torch.equal(sources_of(copies).same_image(sources_of(originals)), expected)


def test_other_images_of_the_same_part_are_other_images():
    sources = sources_of(prepare(DEMO))
    assert torch.equal(sources.same_image(sources), torch.eye(len(DEMO), dtype=torch.bool))


def test_tiles_of_an_image_are_the_same_image_and_none_is_a_copy_of_another():
    reader = ImageLoader(ResizeSpec(64), tile=128)
    sources = sources_of([reader.read(path) for path in DEMO[:2]])
    count = len(sources) // 2
    assert count > 1
    expected = torch.block_diag(torch.ones(count, count), torch.ones(count, count)).bool()
    assert torch.equal(sources.same_image(sources), expected)
    assert sources.distinct() == list(range(2 * count))


def test_of_copies_one_is_kept():
    images = [*prepare(DEMO[:2]), saved_again(DEMO[0], 75), *prepare(DEMO[1:3])]
    assert sources_of(images).distinct() == [0, 1, 4]


def test_where_all_images_are_alike_only_equal_files_count():
    noise = np.random.default_rng(0)
    part = noise.integers(60, 200, (64, 64, 3))
    images = [
        READER.read(np.clip(part + noise.normal(0, 2, part.shape), 0, 255).astype(np.uint8)) for _ in range(5)
    ]
    sources = sources_of([*images, images[0]])
    same = sources.same_image(sources)
    assert same[0].tolist() == [True, False, False, False, False, True]
    assert sources.distinct() == [0, 1, 2, 3, 4]


def test_rows_without_pixels_are_told_apart_by_their_hashes():
    sources = Sources(("a", "b", "a"), (0, 0, 1))
    assert sources.same_image(sources).tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
    ]
