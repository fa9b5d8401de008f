"""Object name → sentences, domains, and a user's own words."""

from __future__ import annotations

import pytest

from clipspect.errors import UsageError
from clipspect.prompts import PromptConfig, PromptSet, clean_object_name, load_prompts


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("metal_nut", "metal nut"),
        ("macaroni2", "macaroni"),
        ("  pipe__fryum ", "pipe fryum"),
        ("M6 bolt", "M6 bolt"),
        ("screw M6", "screw M6"),
        ("Zahnrad größer", "Zahnrad größer"),
        ("nut\x00\n{}", "nut"),
    ],
)
def test_names_are_cleaned(name, clean):
    assert clean_object_name(name) == clean


@pytest.mark.parametrize("name", ["", "  _ ", "{}", "x" * 81])
def test_a_name_that_says_nothing_is_refused(name):
    with pytest.raises(UsageError, match="object's name"):
        clean_object_name(name)


def test_462_sentences_a_side_with_the_right_article():
    table = load_prompts()
    normal, abnormal = table.prompt_set("anoclip").sentences("nut", table.domain("object", "nut"))
    assert len(normal) == len(abnormal) == len(set(normal)) == 462
    assert "an industrial photo of a normal nut" in normal
    assert "a manufacturing image of the nut with flaw for visual inspection" in abnormal
    assert "a manufacturing image of the nut with flaw" in abnormal
    assert not any(" photo" in s and "industrial photo" not in s for s in normal)


def test_auto_knows_textures_by_the_last_word():
    table = load_prompts()
    assert table.domain("auto", "carpet") == table.domains["texture"]
    assert table.domain("auto", "magnetic tile") == table.domains["texture"]
    assert table.domain("auto", "Floor Tiles") == table.domains["texture"]
    assert table.domain("auto", "tile cutter") == table.domains["object"]


def test_a_users_file_adds_a_domain_and_replaces_a_set(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(
        '[domains]\nweld = ["weld photo"]\n[sets.plain]\nnormal=["good {}"]\nabnormal=["bad {}"]\n'
        'templates=["a photo of a {}"]\ndomain_aware=true\n'
    )
    table = load_prompts(own)
    assert table.prompt_set("plain").sentences("seam", table.domain("weld", "seam")) == (
        ["a weld photo of a good seam"],
        ["a weld photo of a bad seam"],
    )
    assert "anoclip" in table.sets


@pytest.mark.parametrize(
    "text",
    [
        "not toml [",
        "[sets.x]\nnormal = 3",
        '[domains]\nweld = "weld photo"',
        '[domains]\nweld = [""]',
        '[domains]\nweld = ["{} photo"]',
        "[domains]\nweld = []",
        '[sets.x]\nnormal=[]\nabnormal=["{}"]\ntemplates=["{}"]',
        "[auto]\ntextures = 3",
        '[sets.x]\nnormal=["no place"]\nabnormal=["{}"]\ntemplates=["{}"]',
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path, text):
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(UsageError):
        load_prompts(own)
    with pytest.raises(UsageError, match="nowhere"):
        load_prompts(tmp_path / "nowhere.toml")


def test_own_states_join_the_shipped_ones():
    states = load_prompts().prompt_set("plain").with_states(abnormal=("{} with a scratch",))
    assert states.sentences("nut", ())[1] == ["a photo of a damaged nut", "a photo of a nut with a scratch"]
    with pytest.raises(UsageError, match="must hold"):
        states.with_states(normal=("spotless",))
    with pytest.raises(UsageError, match="must hold"):
        states.with_states(normal=("{} fine}",))


def test_the_word_photo_is_qualified_wherever_a_template_has_it():
    own = PromptSet(("{}",), ("bad {}",), ("the photo shows a {}", "a photo showing {}"), domain_aware=True)
    assert own.sentences("nut", ("x-ray photo",))[0] == [
        "the x-ray photo shows a nut",
        "an x-ray photo showing nut",
    ]


def test_unknown_names_list_the_known_ones():
    table = load_prompts()
    with pytest.raises(UsageError, match="auto, aerial"):
        table.domain("astral", "nut")
    with pytest.raises(UsageError, match="anoclip"):
        table.prompt_set("nothing")


def test_a_prompt_set_without_parts_keeps_the_rest():
    table, domain = load_prompts(), ("industrial photo", "industrial image")
    whole = table.prompt_set("anoclip").sentences("nut", domain)[1]
    assert len(whole) == 2 * 22 * 7
    reduced = {
        "one-state": (44, "a cropped industrial photo of the damaged nut"),
        "no-domain": (154, "a cropped photo of the damaged nut"),
        "one-template": (14, "an industrial photo of a damaged nut"),
        "one-state+no-domain+one-template": (1, "a photo of a damaged nut"),
    }
    for parts, (count, first) in reduced.items():
        found = table.prompt_set(f"anoclip/{parts}").sentences("nut", domain)[1]
        assert (len(found), found[0]) == (count, first)
    with pytest.raises(UsageError, match="unknown part 'no-words'; there are: one-state, no-domain"):
        table.prompt_set("anoclip/no-words")


def test_a_method_may_have_a_domain_of_its_own():
    config = PromptConfig(load_prompts(), domain="object")
    assert "surface picture" in " ".join(config.sentences("anoclip", "nut", "texture")[0])
    assert "surface picture" not in " ".join(config.sentences("anoclip", "nut")[0])
