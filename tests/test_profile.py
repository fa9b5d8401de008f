"""Product profiles: one file that judges as the options it was made of, and refuses what it was not made for."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

import clipspect
from clipspect.config import DetectorConfig
from clipspect.errors import ProfileError, UsageError
from clipspect.profile import SUFFIX, read_profile
from clipspect.results.review import Review, add_reviews
from helpers.images import plate

METHODS = ["anoclip", "dual-image", "mutual"]


@pytest.fixture
def good(tmp_path):
    folder = tmp_path / "good"
    folder.mkdir()
    for number in range(20, 26):
        Image.fromarray(plate(number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def profile(tmp_path, good, small_model):
    detector = clipspect.load(METHODS, model=str(small_model), ignore_border="5%", domain="texture")
    made, _ = clipspect.create_profile(detector, good, "steel plate", "plate", threshold=0.4)
    path = tmp_path / f"plate{SUFFIX}"
    made.write(path)
    return path


def changed(path, **members: bytes) -> bytes:
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in {**kept, **members}.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def table_with(path, old: str, new: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        text = archive.read("profile.toml").decode()
    assert old in text
    return changed(path, **{"profile.toml": text.replace(old, new, 1).encode()})


def test_a_profile_judges_as_the_options_it_was_made_of(profile, good, plates, small_model):
    product = clipspect.load_product(profile)
    detector = clipspect.load(METHODS, model=str(small_model), ignore_border="5%", domain="texture")
    expected = detector.detect(plates, "steel plate", good=detector.calibrate(good, "steel plate"))
    found = product.detect(plates)
    assert [d.score for d in found] == [d.score for d in expected]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.compact_map, other.compact_map)
        assert one.flag == (other.score >= 0.4)
    assert {d.profile for d in found} == {product.profile.label}


def test_what_is_written_is_read(profile):
    first = read_profile(profile)
    again = read_profile(first.to_bytes(), "plate")
    assert again == first
    assert again.version == first.version
    assert first.with_threshold(0.6).version != first.version
    assert first.with_threshold(0.6).provenance["replaces"] == first.label
    assert first.config().image_size is None
    assert list(first.methods) == METHODS


def test_a_mask_and_a_prompt_file_travel_with_the_profile(tmp_path, good, small_model):
    mask = np.zeros((60, 80), np.uint8)
    mask[:, :40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    prompts = tmp_path / "prompts.toml"
    prompts.write_text('[domains]\nforge = ["forge image"]\n')
    detector = clipspect.load(
        "anoclip", model=str(small_model), roi=tmp_path / "mask.png", prompts=prompts, domain="forge"
    )
    made, _ = clipspect.create_profile(detector, good, "plate", "plate")
    for file in (tmp_path / "mask.png", prompts):
        file.unlink()
    product = clipspect.load_product(read_profile(made.to_bytes()))
    found = product.detect([plate(0, blot=True)])
    assert not found[0].anomaly_map[:, 40:].any()
    assert product.detector.model.prompt_digest == detector.model.prompt_digest


def test_other_weights_and_other_versions_are_refused(profile, tmp_path, small_model):
    cases = {
        "other weights.*another weights|another weights": table_with(profile, 'fingerprint = "', 'fingerprint = "0'),
        "input size": table_with(profile, "image_size = 32", "image_size = 64"),
        "format 9": table_with(profile, "format = 1", "format = 9"),
        "scores differ": table_with(profile, "scores = 1", "scores = 2"),
        "belong to other settings": table_with(profile, 'domain = "texture"', 'domain = "object"'),
    }  # fmt: skip
    for reason, data in cases.items():
        with pytest.raises(ProfileError, match=reason):
            clipspect.load_product(read_profile(data))


def test_damaged_files_are_refused(profile, tmp_path):
    data = profile.read_bytes()
    middle = len(data) // 2
    for wrong in (b"", b"PK", data[:middle], data[:middle] + b"\x00\xff" * 8 + data[middle + 16 :],
                  changed(profile, **{"../evil": b"x"}), changed(profile, **{"profile.toml": b"format = 1"}),
                  changed(profile, **{"roi.png": b"no image"})):  # fmt: skip
        with pytest.raises(ProfileError):
            clipspect.load_product(read_profile(wrong))
    with pytest.raises(ProfileError, match="no such profile"):
        read_profile(tmp_path / "absent.clipspect")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("profile.toml", "a" * 10_000_000)
    with pytest.raises(ProfileError, match="compressed"):
        read_profile(buffer.getvalue())


def test_options_that_the_profile_sets_are_refused_beside_it(profile):
    with pytest.raises(UsageError, match="tile is set by the profile"):
        clipspect.load_product(profile, DetectorConfig(tile=32))
    assert clipspect.load_product(profile, DetectorConfig(batch_size=2)).detector.model.batch_size == 2


def test_one_command_makes_a_profile_and_another_uses_it(tmp_path, good, plates, run):
    path, out = tmp_path / "plate.clipspect", tmp_path / "out"
    code, said, errors = run(
        "profile", "create", str(good), "--object", "plate", "-o", str(path), "-m", "anoclip"
    )
    assert code == 0, errors
    assert "6 known-good images" in said
    label = said.split()[1]
    code, said, _ = run("profile", "show", str(path), "--json", model=False)
    assert json.loads(said)["object"] == "plate"
    code, said, errors = run(
        "detect", str(plates), "--profile", str(path), "--out", str(out), "--json", model=False
    )
    assert code == 0, errors
    rows = [json.loads(line) for line in said.splitlines()]
    assert {row["profile"] for row in rows} == {label}
    assert {row["verdict"] for row in rows} <= {"flagged", "clean"}
    for words, reason in (
        (["--object", "x"], "--object is set by the profile"),
        (["--method", "mutual"], "method is set by the profile"),
    ):
        code, _, errors = run("detect", str(plates), "--profile", str(path), *words, model=False)
        assert code == 2
        assert reason in errors
    code, _, errors = run("detect", str(plates), model=False)
    assert code == 2
    assert "--object" in errors


def test_update_shows_what_changes_and_names_what_it_replaces(tmp_path, good, plates, run):
    path, out = tmp_path / "plate.clipspect", tmp_path / "out"
    run("profile", "create", str(good), "--object", "plate", "-o", str(path), "-m", "anoclip")
    first = read_profile(path)
    run("detect", str(plates), "--profile", str(path), "--out", str(out), model=False)
    add_reviews(
        out, [Review("a/plate 1.png", "reject"), Review("a/plate 3.png", "accept", note="a reflection")]
    )
    options = ["--from-review", str(out), "--yes"]
    code, said, errors = run("profile", "update", str(path), *options, model=False)
    assert code == 0, errors
    assert "before: flags" in said
    assert "of 1 rejected" in said
    second = read_profile(path)
    assert second.provenance["replaces"] == first.label
    assert second.calibrations["anoclip"].images == 7
    code, _, errors = run("profile", "update", str(path), *options, model=False)
    assert code == 0, errors
    assert read_profile(path).calibrations["anoclip"].images == 7, "each image once"
    code, said, _ = run("profile", "update", str(path), "--threshold", "0.7", "--yes", model=False)
    assert code == 0
    assert read_profile(path).threshold == 0.7
    code, _, errors = run("profile", "update", str(path), model=False)
    assert code == 2
    assert "nothing to change" in errors


def test_update_counts_an_image_that_any_method_flags(tmp_path, profile, plates, run):
    out = tmp_path / "out"
    code, said, errors = run(
        "detect", str(plates), "--profile", str(profile), "--out", str(out), "--json", model=False
    )
    assert code == 0, errors
    flagged: dict[str, bool] = {}
    for row in map(json.loads, said.splitlines()):
        flagged[row["path"]] = flagged.get(row["path"], False) or row["flag"]
    rejected = list(flagged)[:5]
    add_reviews(out, [Review(path, "reject") for path in rejected])
    code, said, errors = run(
        "profile", "update", str(profile), "--from-review", str(out), "--yes", model=False
    )
    assert code == 0, errors
    assert f"before: flags {sum(flagged[path] for path in rejected)} of 5 rejected" in said
