"""Which files of a folder are pictures, of which class and part: by their names alone."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from purify.folder_layout import find_layout


@pytest.mark.parametrize("name", ["training_set", "Training", "seg_train", "train-images", "validation", "Dev", "testing data"])
def test_parts_of_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"pets has the parts {name}; call them train, val, test"):
        find_layout(Path("pets"), [f"{name}/{c}/0.png" for c in ("ant", "bee")] + ["ant/0.png"])


def test_classes_that_look_like_parts_are_doubted(caplog: pytest.LogCaptureFixture) -> None:
    folds = [f"fold{fold}/{c}/{i}.png" for fold in (1, 2) for c in ("ant", "bee") for i in range(3)]
    with caplog.at_level(logging.WARNING):
        layout = find_layout(Path("pets"), folds)
    assert set(layout.classes) == {"fold1", "fold2"}
    (line,) = caplog.messages
    assert line.startswith(
        "pets: the folders fold1, fold2 are taken for classes, though each of them holds the folders ant, bee;"
    )
    caplog.clear()
    find_layout(Path("pets"), [*folds, "fold2/0.png"])  # a picture beside the folders, as a class has
    find_layout(Path("pets"), ["cat/near/0.png", "cat/far/1.png", "dog/near/0.png"])
    find_layout(Path("pets"), [f"{part}/{c}/{i}.png" for part in ("train", "test") for c in ("ant", "bee") for i in range(3)])
    assert not caplog.messages


def test_a_few_warnings_and_not_one_for_each_picture(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        layout = find_layout(Path("pets"), ["ant/0.png", "bee/0.png", *(f"{i}.png" for i in range(500))])
    assert len(layout.left_out) == 500
    assert len(caplog.messages) == 4
    assert caplog.messages[-1] == "left out of pets: 497 more of this kind"


def test_a_listing_of_many_pictures_takes_linear_time() -> None:
    names = [f"train/{i % 10}/{i}.jpg" for i in range(40_000)] + ["lonely.jpg", "train/none.jpg"]
    start = time.perf_counter()
    layout = find_layout(Path("many.zip"), names)
    assert time.perf_counter() - start < 10  # half a second; in quadratic time two minutes
    assert (len(layout.names), layout.parts[0], len(layout.left_out)) == (40_000, "train", 2)
