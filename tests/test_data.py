"""Data sets by name: splits that never overlap, folders and zips, and what is said when something is missing."""

from __future__ import annotations

import io
import logging
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import data_root, need
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

import purify
from purify import image_folder
from purify.data import _FOLDER_SHARES, DataNotFoundError, split_indices
from purify.picture import read_picture


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    cuts=st.lists(st.integers(1, 10), min_size=1, max_size=4),
    seed=st.integers(0, 5),
)
def test_splits_cover_everything_once(labels: list[int], cuts: list[int], seed: int) -> None:
    shares = [c / sum(cuts) for c in cuts]
    parts = split_indices(torch.tensor(labels), shares, seed)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    assert all(torch.equal(a, b) for a, b in zip(parts, split_indices(torch.tensor(labels), shares, seed), strict=True))


def test_bad_shares() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        split_indices(torch.zeros(3, dtype=torch.long), (0.5, 0.6))


def test_digits_are_scikit_learns() -> None:
    parts = [purify.load_dataset("digits", split) for split in ("train", "val", "test")]  # type: ignore[arg-type]
    assert sum(map(len, parts)) == 1797
    ours = torch.cat([p.pixels for p in parts]).flatten(1).numpy()
    theirs = np.round(load_digits().data * 255 / 16)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))
    images, labels = parts[2].batch(slice(0, 3))
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert labels.dtype == torch.int64
    assert torch.bincount(parts[2].labels).min() >= 40  # every class is there


def picture(value: int, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    pixels = np.full((size[1], size[0], 3), (value, 255 - value, 7), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def make_folder(root: Path, parts: tuple[str, ...] = ("",), per_class: int = 20, **options: object) -> Path:
    for part in parts:
        for c in ("ant", "bee"):
            for i in range(per_class):
                file = root / part / c / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(picture(i if c == "ant" else 100 + i, **options))  # type: ignore[arg-type]
    return root


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PURIFY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PURIFY_DATA", raising=False)
    return tmp_path / "cache"


@pytest.mark.parametrize("packed", [False, True])
def test_image_folder(tmp_path: Path, cache: Path, packed: bool) -> None:
    folder = make_folder(tmp_path / "pictures")
    name = f"imagefolder:{zipped(folder) if packed else folder}"
    sets = [purify.load_dataset(name, split) for split in ("train", "val", "test")]  # type: ignore[arg-type]
    assert [len(s) for s in sets] == [32, 2, 6]
    assert sets[0].image_shape == (3, 6, 8)
    assert sets[0].classes == ("ant", "bee")
    shown = [s.batch(slice(None))[0] for s in sets]
    assert len(torch.cat(shown)[:, 0, 0, 0].unique()) == 40
    for images, pixels in zip(sets, shown, strict=True):
        assert torch.equal(images.labels, (pixels[:, 0, 0, 0] * 255 > 99.5).long())
        assert torch.equal(images.first(3).batch(slice(None))[0], pixels[:3])
        assert torch.equal(images.batch(torch.tensor([1, 0]))[0], pixels[:2].flip(0))
    assert len(list(cache.rglob("*.bytes"))) == 1  # decoded once for all three
    joined = sets[0].joined(sets[1])
    assert torch.equal(joined.batch(slice(None))[0], torch.cat(shown[:2]))
    assert torch.equal(joined.labels, torch.cat([sets[0].labels, sets[1].labels]))
    with pytest.raises(ValueError, match="same image size and classes"):
        joined.joined(purify.load_dataset("digits", "val"))


def test_a_changed_folder_is_read_anew(tmp_path: Path, cache: Path) -> None:
    folder = make_folder(tmp_path / "pictures")
    before = purify.load_dataset(f"imagefolder:{folder}", "train").batch(slice(None))[0]
    for i in range(20):
        (folder / "ant" / f"{i}.png").write_bytes(picture(i + 50))
    after = purify.load_dataset(f"imagefolder:{folder}", "train").batch(slice(None))[0]
    assert not torch.equal(before, after)
    assert {path.suffix for path in (cache / "decoded").iterdir()} == {".bytes", ".json"}
    assert len(list((cache / "decoded").iterdir())) == 2  # the older copy is gone
    purify.load_dataset(f"imagefolder:{folder}", "train", size=4)
    assert len(list(cache.rglob("*.bytes"))) == 2  # the same pictures, cut otherwise, stand beside it


def test_what_another_process_still_decodes_stays(tmp_path: Path, cache: Path) -> None:
    folder = make_folder(tmp_path / "pictures")
    purify.load_dataset(f"imagefolder:{folder}", "train")
    (decoded,) = cache.rglob("*.bytes")
    unfinished = decoded.with_name(f"{decoded.stem.partition('-')[0]}-another.1.partial")
    unfinished.touch()
    (folder / "ant" / "0.png").write_bytes(picture(60))
    purify.load_dataset(f"imagefolder:{folder}", "train")
    assert unfinished.exists()
    assert not decoded.exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, cache: Path) -> None:
    folder = make_folder(tmp_path / "pictures")
    cache.write_text("a file where a folder should be", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot be kept in .*cache.*PURIFY_CACHE names another folder"):
        purify.load_dataset(f"imagefolder:{folder}", "train")


def test_photographs_are_split_600_50_100() -> None:
    """One photograph of each of 750 classes: no class can be in every part, and all of them are cut at once."""
    with zipfile.ZipFile(need("imagenet-750.zip")) as names:
        labels = torch.arange(sum(name.endswith(".JPEG") for name in names.namelist()))
    assert [len(part) for part in split_indices(labels, _FOLDER_SHARES)] == [600, 50, 100]


def test_resize_before_the_crop(tmp_path: Path) -> None:
    """As torchvision: the short side becomes ``resize``, and ``size`` is cut out of the middle."""
    gradient = Image.fromarray(np.tile(np.arange(0, 240, 2, dtype=np.uint8), (60, 1))).convert("RGB")  # 60 high, 120 wide
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    for i in range(15):
        gradient.save(tmp_path / "pictures" / "a" / f"{i}.png")
    name = f"imagefolder:{tmp_path / 'pictures'}"
    ours = purify.load_dataset(name, "train", size=20, resize=30).batch(slice(0, 1))[0]
    theirs = center_crop(resize(gradient, [30], InterpolationMode.BICUBIC), [20, 20])
    assert (ours[0, 0] * 255 - torch.from_numpy(np.asarray(theirs)[..., 0].copy())).abs().max() <= 1.5
    with pytest.raises(ValueError, match="resize of at least that, got size 20, resize 10"):
        purify.load_dataset(name, "train", size=20, resize=10)


def test_parts_and_class_list(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", parts=("train", "test"), per_class=10)
    classes = tmp_path / "classes.txt"
    classes.write_text("zebra\nbee\nant\n", encoding="utf-8")
    name = f"imagefolder:{folder}"
    train, val, test = (purify.load_dataset(name, s, class_list=classes) for s in ("train", "val", "test"))  # type: ignore[arg-type]
    assert (len(train), len(val), len(test)) == (18, 2, 20)
    assert set(test.labels.tolist()) == {1, 2}
    assert test.classes == ("zebra", "bee", "ant")
    classes.write_text("ant\n", encoding="utf-8")
    with pytest.raises(ValueError, match="the class list lacks: bee"):
        purify.load_dataset(name, "test", class_list=classes)


def test_a_class_list_is_read_by_lines(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures")
    (folder / "bee").rename(folder / "golden retriever")
    classes = tmp_path / "classes.txt"
    classes.write_text("ant\nhouse cat\n\ngolden retriever\n", encoding="utf-8")
    images = purify.load_dataset(f"imagefolder:{folder}", "train", class_list=classes)
    assert set(images.labels.tolist()) == {0, 2}
    classes.write_text("ant\nbee\nant\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"classes.txt names ant more than once"):
        purify.load_dataset(f"imagefolder:{folder}", "train", class_list=classes)
    classes.write_text("ant\ngolden retriever\n", encoding="utf-8-sig")  # as Windows' editor saves it
    assert purify.load_dataset(f"imagefolder:{folder}", "train", class_list=classes).classes == ("ant", "golden retriever")
    classes.write_text("ant\ngolden retriever\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"classes.txt is no text in UTF-8 .* expected UTF-8"):
        purify.load_dataset(f"imagefolder:{folder}", "train", class_list=classes)


@pytest.mark.parametrize("parts", [("",), ("train", "test")])
def test_one_folder_with_everything_in_it(tmp_path: Path, parts: tuple[str, ...]) -> None:
    """As in `zip -r pictures.zip pictures`, with what a Mac adds."""
    folder = make_folder(tmp_path / "above" / "pictures", parts=parts)
    bare = purify.load_dataset(f"imagefolder:{folder}", "test")
    (folder.parent / "__MACOSX" / "ant").mkdir(parents=True)
    (folder.parent / "__MACOSX" / "ant" / "._0.png").write_bytes(b"shadow")
    shutil.make_archive(str(tmp_path / "packed"), "zip", folder.parent)
    packed = purify.load_dataset(f"imagefolder:{tmp_path / 'packed.zip'}", "test")
    assert packed.classes == bare.classes == ("ant", "bee")
    assert torch.equal(packed.batch(slice(None))[0], bare.batch(slice(None))[0])
    assert packed.skipped == ()


def test_what_lies_elsewhere_is_no_class(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", parts=("train", "test"))
    (folder / "train" / "contact-sheet.png").write_bytes(picture(3))
    images = purify.load_dataset(f"imagefolder:{folder}", "test")
    assert images.classes == ("ant", "bee")
    assert images.skipped == ("train/contact-sheet.png: in no class folder of train, val, test",)
    (folder / "train").rename(folder / "training")
    with pytest.raises(ValueError, match="has the parts training; call them train, val, test"):
        purify.load_dataset(f"imagefolder:{folder}", "test")


@pytest.mark.parametrize("parts", [("Train", "Test"), ("TRAIN", "VAL", "test")])
def test_parts_may_be_written_in_capitals(tmp_path: Path, parts: tuple[str, ...]) -> None:
    folder = make_folder(tmp_path / "pictures", parts=parts)
    images = purify.load_dataset(f"imagefolder:{folder}", "test")
    assert images.classes == ("ant", "bee")
    assert len(images) == 40
    assert images.skipped == ()


def test_a_few_warnings_of_unreadable_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path / "pictures")
    for i in range(50):
        (folder / "ant" / f"{i}.heic").write_text("no picture", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert len(purify.load_dataset(f"imagefolder:{folder}", "test").skipped) == 50
    assert len(caplog.messages) == 4
    assert "skipped 47 more unreadable images" in caplog.messages[-1]


def test_links_are_followed_and_not_round_in_a_circle(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures")
    shutil.move(folder / "bee", tmp_path / "elsewhere")
    try:
        (folder / "bee").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (folder / "ant" / "round").symlink_to(folder, target_is_directory=True)
    except OSError as error:
        pytest.skip(f"no links here: {error}")
    sets = [purify.load_dataset(f"imagefolder:{folder}", split) for split in ("train", "val", "test")]  # type: ignore[arg-type]
    assert sets[0].classes == ("ant", "bee")
    assert sum(map(len, sets)) == 40


def test_a_class_may_be_called_like_a_part(tmp_path: Path) -> None:
    """Cars, trains and boats; and pictures without class folders are not classes of one picture each."""
    folder = make_folder(tmp_path / "pictures", per_class=10)
    (folder / "bee").rename(folder / "train")
    images = purify.load_dataset(f"imagefolder:{folder}", "train")
    assert images.classes == ("ant", "train")
    assert set(images.labels.tolist()) == {0, 1}
    for part in ("train", "test"):
        (tmp_path / "flat" / part).mkdir(parents=True)
        (tmp_path / "flat" / part / "0.png").write_bytes(picture(0))
    with pytest.raises(ValueError, match="has pictures right inside test; expected train/class/file"):
        purify.load_dataset(f"imagefolder:{tmp_path / 'flat'}", "train")


def test_a_damaged_member_of_a_zip_is_skipped(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:  # stored, so that its bytes can be found
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    raw = bytearray((tmp_path / "packed.zip").read_bytes())
    raw[raw.index(b"IDAT") + 6] ^= 255
    (tmp_path / "packed.zip").write_bytes(raw)
    (skipped,) = purify.load_dataset(f"imagefolder:{tmp_path / 'packed.zip'}", "test").skipped
    assert "Bad CRC-32" in skipped


def test_few_images_of_a_class_leave_no_part_empty() -> None:
    for each in (3, 4, 5, 6, 7, 9):
        parts = split_indices(torch.arange(each * 50) % 50, (0.8, 0.08, 0.12))
        assert all(len(part) for part in parts)
        assert sorted(torch.cat(parts).tolist()) == list(range(each * 50))


def test_only_a_test_part(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", parts=("test",))
    assert len(purify.load_dataset(f"imagefolder:{folder}", "test")) == 40
    with pytest.raises(ValueError, match="holds no train images; its parts are test"):
        purify.load_dataset(f"imagefolder:{folder}", "train")


def test_unreadable_images_are_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path / "pictures")
    (folder / "ant" / "broken.png").write_bytes(picture(3)[:45])
    (folder / "bee" / "text.png").write_text("not an image", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        images = purify.load_dataset(f"imagefolder:{folder}", "test")
    assert len(images.skipped) == 2
    assert "ant/broken.png" in caplog.text
    assert "bee/text.png" in caplog.text


def test_sizes_must_agree_or_be_given(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures")
    (folder / "ant" / "large.png").write_bytes(picture(3, size=(20, 30)))
    with pytest.raises(ValueError, match=r"differ in size \(6×8 and 30×20"):
        purify.load_dataset(f"imagefolder:{folder}", "test")
    assert purify.load_dataset(f"imagefolder:{folder}", "test", size=5).image_shape == (3, 5, 5)


def test_other_sizes_are_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "pictures")
    (folder / "ant" / "00.png").write_bytes(picture(3, size=(20, 30)))
    read: list[bytes] = []
    monkeypatch.setattr(image_folder, "read_picture", lambda raw: read.append(raw) or read_picture(raw))
    with pytest.raises(ValueError, match="differ in size"):
        purify.load_dataset(f"imagefolder:{folder}", "test")
    assert len(read) == 2  # of 41


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", mode="L")
    assert purify.load_dataset(f"imagefolder:{folder}", "test").image_shape == (1, 6, 8)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"unknown data set 'minst'; known: digits, mnist.*imagefolder:PATH"):
        purify.load_dataset("minst", "test")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        purify.load_dataset("digits", "dev")  # type: ignore[arg-type]
    with pytest.raises(DataNotFoundError, match="mnist is not here .*--data-root or PURIFY_DATA"):
        purify.load_dataset("mnist", "test", data_root=tmp_path)
    with pytest.raises(DataNotFoundError, match="looked for"):
        purify.load_dataset(f"imagefolder:{tmp_path}/nothing", "test")
    monkeypatch.setenv("PURIFY_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataNotFoundError, match="elsewhere"):
        purify.load_dataset("cifar10", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        purify.load_dataset(f"imagefolder:{tmp_path}/empty", "test")


def test_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    need("mnist")
    monkeypatch.setenv("PURIFY_DATA", str(data_root()))
    train, val, test = (purify.load_dataset("mnist", s) for s in ("train", "val", "test"))  # type: ignore[arg-type]
    assert len(train) + len(val) == 60_000
    assert abs(len(val) - 5000) < 10
    assert train.image_shape == test.image_shape == (1, 28, 28)
    assert len(test) >= 2000


def test_zip_with_parts() -> None:
    path = need("cifar10-lossless.zip")
    test = purify.load_dataset(f"imagefolder:{path}", "test")
    assert len(test) == 1000
    assert test.image_shape == (3, 32, 32)
    assert test.classes[0] == "airplane"
    assert len(test.first(60).labels.unique()) == 10  # the first images are a sample of all classes
