"""Pictures of every kind, read from real files made here; and folders of them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from purify.image_folder import read_image_folder
from purify.picture import picture_to_tensor, plain_picture, read_picture, tensor_to_picture

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def encoded(picture: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def colours(seed: int = 0, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """Smooth, so that JPEG does it little harm."""
    small = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def png_of_16_bits(values: np.ndarray) -> bytes:
    """(H, W, C) by the PNG specification, since Pillow writes none with 16 bits of colour."""
    height, width, channels = values.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_grey_and_colour_stay_as_they_are(tmp_path: Path) -> None:
    grey = Image.fromarray(RAMP)
    assert np.array_equal(read_picture(encoded(grey, "PNG")), RAMP)
    grey.save(tmp_path / "grey.png")
    for path in (tmp_path / "grey.png", str(tmp_path / "grey.png")):
        assert read_picture(path).mode == "L"
    for file_format in ("PNG", "TIFF", "BMP", "PPM"):
        picture = read_picture(encoded(colours(), file_format))
        assert picture.mode == "RGB"
        assert np.array_equal(picture, colours())


def test_one_bit() -> None:
    picture = read_picture(encoded(Image.fromarray(RAMP > 99), "PNG"))
    assert picture.mode == "L"
    assert set(np.unique(picture)) == {0, 255}


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk(file_format: str) -> None:
    picture = read_picture(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), file_format))
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture).astype(int) - (255, 0, 0)).max() <= 4


def test_transparency_is_laid_over_white() -> None:
    see_through = colours().convert("RGBA")
    see_through.putalpha(Image.fromarray(np.where(RAMP < 128, 0, 255).astype(np.uint8)))
    shown = np.asarray(read_picture(encoded(see_through, "PNG")))
    assert (shown[:8] == 255).all()
    assert np.array_equal(shown[8:], np.asarray(colours())[8:])
    half = read_picture(encoded(Image.new("LA", (2, 2), (0, 128)), "PNG"))
    assert half.mode == "L"
    assert half.getpixel((0, 0)) == 127
    palette = colours().quantize(8)
    marked = read_picture(encoded(palette, "PNG", transparency=palette.getpixel((0, 0))))
    assert marked.mode == "RGB"
    assert marked.getpixel((0, 0)) == (255, 255, 255)


def test_16_bits_of_grey_are_scaled() -> None:
    """Pillow's own conversion clips at 255, and so does torchvision's loader: nearly white everywhere."""
    values = np.array([[[0], [128], [129], [25700], [32896], [65535]]], dtype=np.uint16)
    wanted = [[0, 0, 1, 100, 128, 255]]
    png = png_of_16_bits(values)
    assert np.asarray(read_picture(png)).tolist() == wanted
    assert np.asarray(Image.open(io.BytesIO(png)).convert("L")).tolist() != wanted
    assert np.asarray(read_picture(encoded(Image.fromarray(values[..., 0]), "TIFF"))).tolist() == wanted
    assert np.asarray(plain_picture(Image.fromarray(values[..., 0].astype(np.int32)))).tolist() == wanted


def test_16_bits_of_colour_keep_the_upper_8() -> None:
    values = np.array([[[0, 255, 256], [65535, 32768, 511]]], dtype=np.uint16)
    assert np.asarray(read_picture(png_of_16_bits(values))).tolist() == [[[0, 0, 1], [255, 128, 1]]]


def test_values_that_nothing_explains() -> None:
    with pytest.raises(ValueError, match=r"the picture cannot be used.*floating-point"):
        read_picture(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))
    with pytest.raises(ValueError, match="from -1 to 70,000"):
        plain_picture(Image.fromarray(np.array([[-1, 70_000]], np.int32)))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(file_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    raw = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(raw)).n_frames == 3
    assert np.array_equal(read_picture(raw), frames[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """The corner that is stored in the upper left of orientation n belongs where the EXIF standard says."""
    stored = Image.new("RGB", (32, 16), "white")
    stored.paste("black", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x112] = orientation
    for file_format in ("JPEG", "PNG"):
        picture = np.asarray(read_picture(encoded(stored, file_format, exif=exif)))[..., 0]
        assert picture.shape == ((16, 32) if orientation < 5 else (32, 16))
        corners = [picture[2, 2], picture[2, -3], picture[-3, 2], picture[-3, -3]]
        where = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}[orientation]
        assert int(np.argmin(corners)) == where
        assert sorted(corners)[1] > 200


def test_damaged_files_say_so(tmp_path: Path) -> None:
    whole = encoded(colours(size=(200, 200)), "JPEG")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.jpg cannot be read: .*truncated.*fetch it again"):
        read_picture(cut)
    cut.write_bytes(whole[:3])
    with pytest.raises(ValueError, match="cut.jpg"):
        read_picture(cut)
    with pytest.raises(ValueError, match="no picture that Pillow can read"):
        read_picture(b"hello")
    with pytest.raises(FileNotFoundError, match="no picture .*missing.jpg"):
        read_picture(tmp_path / "missing.jpg")
    with pytest.raises(ValueError, match="cannot be read"):
        read_picture(tmp_path)


def test_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"too large: Image size \(256 pixels\)"):
        read_picture(encoded(colours(), "PNG"))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP", "PPM"])
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what is corrupt in EXIF data
def test_whatever_the_bytes_are_it_is_a_picture_or_a_value_error(file_format: str) -> None:
    draw = random.Random(0)
    exif = Image.Exif()
    exif[0x112], exif[0x10E], exif[0x11A] = 6, "words", 72.0
    options = {} if file_format in ("GIF", "BMP", "PPM") else {"exif": exif}
    whole = encoded(colours(), file_format, **options)
    read = 0
    for _ in range(150):
        raw = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.3 else whole)
        for _ in range(draw.randrange(5) if raw else 0):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        try:
            assert read_picture(bytes(raw)).mode in ("L", "RGB")
            read += 1
        except ValueError:
            pass
    assert 0 < read < 150


def test_one_pixel_and_tensors() -> None:
    pixel = Image.new("RGB", (1, 1), (1, 2, 3))
    tensor = picture_to_tensor(read_picture(encoded(pixel, "PNG")))
    assert tensor.flatten().tolist() == [1, 2, 3]
    assert tensor.dtype == torch.uint8
    assert np.array_equal(tensor_to_picture(tensor), pixel)
    assert tensor_to_picture(tensor[:1]).mode == "L"
    assert np.array_equal(tensor_to_picture(picture_to_tensor(colours())), colours())


def test_a_folder_of_every_kind(tmp_path: Path) -> None:
    """The same reading serves image folders: 16-bit grey is scaled, rotation obeyed, what is damaged is skipped by name."""
    folder = tmp_path / "pictures" / "some"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x112] = 6
    upper = Image.new("RGB", (32, 16), "white")
    upper.paste("black", (0, 0, 16, 16))  # the left half, which is to be the upper one
    (folder / "a-rotated.png").write_bytes(encoded(upper, "PNG", exif=exif))
    (folder / "b-sixteen.png").write_bytes(png_of_16_bits(np.full((40, 30, 1), 25700, np.uint16)))
    (folder / "c-clear.png").write_bytes(encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "PNG"))
    (folder / "d-cmyk.jpg").write_bytes(encoded(Image.new("CMYK", (20, 30), (0, 255, 255, 0)), "JPEG"))
    (folder / "e-cut.jpg").write_bytes(encoded(colours(size=(100, 100)), "JPEG")[:700])
    pool = read_image_folder(folder.parent, tmp_path / "cache", size=16)
    assert len(pool.skipped) == 1
    assert "e-cut.jpg" in pool.skipped[0]
    rotated, sixteen, clear, cmyk = pool.pixels
    assert rotated.shape == (3, 16, 16)
    assert rotated[:, :7].max() < 30
    assert rotated[:, 9:].min() > 225
    assert (sixteen == 100).all()
    assert (clear == 255).all()
    assert torch.allclose(cmyk.float().mean((1, 2)), torch.tensor([255.0, 0.0, 0.0]), atol=5)
