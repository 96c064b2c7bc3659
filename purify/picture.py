"""Read one picture of any kind: what comes out is grey or RGB, 8 bits a channel, upright and opaque."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

__all__ = ["picture_to_tensor", "plain_picture", "read_picture", "tensor_to_picture"]

_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, OverflowError, struct.error, zlib.error)
"""What Pillow's decoders raise on files that are cut short or damaged."""


def read_picture(source: str | Path | bytes) -> Image.Image:
    """Read a picture from a file, or from the bytes of one, as :func:`plain_picture` says.

    Args:
        source: a path, or the encoded bytes (JPEG, PNG, TIFF, WebP, GIF, … : whatever Pillow decodes).

    Returns:
        A picture of mode ``L`` (grey) or ``RGB``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no picture, one that is cut short or damaged, one of more than about 179 million pixels (Pillow's limit
            against decompression bombs), or one with values that no rule makes 8 bits of (:func:`plain_picture`).

    >>> buffer = io.BytesIO()
    >>> Image.new("CMYK", (4, 2), (0, 255, 255, 0)).save(buffer, "TIFF")
    >>> picture = read_picture(buffer.getvalue())
    >>> picture.mode, picture.size, picture.getpixel((0, 0))
    ('RGB', (4, 2), (255, 0, 0))
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            opened.load()  # decodes all of it: a file cut short raises here
    except FileNotFoundError:
        raise FileNotFoundError(f"no picture {name}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name} is no picture that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error}") from None
    except _DAMAGED as error:
        raise ValueError(f"{name} cannot be read: {error}; the file is damaged or cut short: fetch it again") from error
    try:
        return plain_picture(opened)
    except ValueError as error:
        raise ValueError(f"{name} cannot be used: {error}") from error


def plain_picture(picture: Image.Image) -> Image.Image:
    """An opened picture as mode ``L`` (grey) or ``RGB``: 8 bits a channel, upright, opaque.

    - Turned and mirrored as its EXIF orientation says; where EXIF data are damaged, as it is stored.
    - Animated: the frame that is current, which is the first one of a file just opened.
    - 1 bit, 8 bits or 16 bits of grey: ``L``; 16 bits are divided by 257 and rounded (Pillow's own conversion would make white of
      nearly everything). Of 16 bits of colour Pillow keeps the upper 8.
    - CMYK, YCbCr, palettes: ``RGB``, by Pillow's formulas; colour profiles are not applied.
    - Transparent pixels: laid over white, as a page would show them.

    Raises:
        ValueError: floating-point pixels, or 32-bit ones beyond 0 … 65,535: nothing says what is white.

    >>> plain_picture(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    with contextlib.suppress(Exception):  # Pillow raises nearly anything on damaged EXIF data
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in _SIXTEEN_BITS:
        return _eight_bits(picture)
    if picture.mode == "F":
        raise ValueError(
            "its pixels are floating-point numbers, and nothing says which one is white; save 8 or 16 bits a channel"
        )
    if picture.mode == "1":
        return picture.convert("L")
    if picture.has_transparency_data:
        clear = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        opaque = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
        return opaque.convert("L" if picture.mode in ("L", "LA", "La") else "RGB")
    return picture.copy() if picture.mode in ("L", "RGB") else picture.convert("RGB")


def picture_to_tensor(picture: Image.Image) -> Tensor:
    """A picture of mode ``L`` or ``RGB`` as uint8 (1, H, W) or (3, H, W).

    >>> picture_to_tensor(Image.new("RGB", (5, 4))).shape
    torch.Size([3, 4, 5])
    """
    pixels: Tensor = pil_to_tensor(picture)
    return pixels


def tensor_to_picture(pixels: Tensor) -> Image.Image:
    """The reverse of :func:`picture_to_tensor`: uint8 (1, H, W) or (3, H, W) to a picture of mode ``L`` or ``RGB``.

    >>> import torch
    >>> tensor_to_picture(torch.full((1, 4, 5), 255, dtype=torch.uint8)).getpixel((0, 0))
    255
    """
    array = pixels.cpu().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16 bits of grey to mode ``L``; old versions of Pillow hold them in 32."""
    values = np.asarray(picture)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"its pixels have 32 bits, from {low:,} to {high:,}, more than 0 … 65,535; save 8 or 16 bits a channel")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
