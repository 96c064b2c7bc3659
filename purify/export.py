"""A module as a file for other runtimes: ONNX, or a program of torch.export; held against the module before it is written."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

__all__ = [
    "ExportError",
    "Parity",
    "check_parity",
    "export_onnx",
    "export_program",
    "has_onnx",
    "load_onnx",
    "load_program",
    "random_images",
]

TOLERANCE = 1e-4
"""Largest difference from the module, in units of its outputs or, where these are above 1, of the largest of them."""
INT8_TOLERANCE = 0.25
"""The same where convolutions are int8: it tells a broken graph from rounding, and says nothing of accuracy."""
_ONNX = ("onnx", "onnxscript", "onnxruntime")
_ANY_NUMBER = ({0: Dim("batch", min=1)},)
_BATCHES = (1, 7)
"""Of the random images of a parity check; the module is traced with 2."""


class ExportError(ValueError):
    """A module that cannot be exported, or a file that gives other results than its module."""


class Parity(NamedTuple):
    """How far an exported module is from the module itself, on random images."""

    images: int
    difference: float
    """Largest over all images and outputs."""
    allowed: float
    same_class: int | None
    """Images with the same largest logit; None where the output is no (N, classes)."""
    output_shape: tuple[int, ...]
    """Of one image's output."""

    def __str__(self) -> str:
        """In one line."""
        text = f"{self.images} random images, largest difference {self.difference:.2g} (allowed {self.allowed:.2g})"
        return text if self.same_class is None else f"{text}, same class on {self.same_class} of {self.images}"


def check_parity(
    exported: Callable[[Tensor], Tensor], module: nn.Module, image_shape: Sequence[int], *, tolerance: float = TOLERANCE
) -> Parity:
    """Hold an exported module against the module on random images in [0, 1], in batches of 1 and 7.

    Args:
        exported: images (N, C, H, W) to the module's outputs.
        module: in eval mode.
        image_shape: (C, H, W).
        tolerance: largest difference allowed, times the largest output where that is above 1.

    Raises:
        ExportError: another shape, a larger difference, or NaN.

    >>> module = nn.Flatten().eval()
    >>> print(check_parity(module, module, (1, 8, 8)))
    8 random images, largest difference 0 (allowed 0.0001), same class on 8 of 8
    >>> check_parity(lambda x: module(x) + 1, module, (1, 8, 8))
    Traceback (most recent call last):
    purify.export.ExportError: the export differs from the module: 8 random images, largest difference 1 (allowed 0.0001), ...
    """
    images = random_images(module, sum(_BATCHES), image_shape)
    batches = torch.tensor_split(images, _BATCHES[:1])
    with torch.no_grad():
        wanted, found = (torch.cat([function(batch) for batch in batches]) for function in (module, exported))
    if found.shape != wanted.shape:
        raise ExportError(f"the export gives outputs of shape {tuple(found.shape)}, the module {tuple(wanted.shape)}")
    parity = Parity(
        images=len(images),
        difference=(found - wanted).abs().max().item(),
        allowed=tolerance * max(1.0, wanted.abs().max().item()),
        same_class=int((found.argmax(1) == wanted.argmax(1)).sum()) if wanted.ndim == 2 else None,
        output_shape=tuple(wanted.shape[1:]),
    )
    if not parity.difference <= parity.allowed:  # NaN, too
        raise ExportError(f"the export differs from the module: {parity}")
    return parity


def export_program(module: nn.Module, path: str | Path, image_shape: Sequence[int], *, tolerance: float = TOLERANCE) -> Parity:
    """Write ``path`` (``*.pt2``): the module as a program of ``torch.export``, for any number of images at once.

    The file is written atomically, and only if what is read back from it stands :func:`check_parity`. Gradients flow through
    the program as through the module.

    Args:
        module: images (N, C, H, W) to one tensor, in eval mode.
        path: of the file.
        image_shape: (C, H, W), fixed in the program.
        tolerance: see :func:`check_parity`.

    Raises:
        ExportError: what torch.export cannot trace with a free number of images, or a failed parity check.
        ValueError: a module in training mode, or another suffix.

    >>> module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(export_program(module, f"{folder}/module.pt2", (1, 8, 8)).output_shape)
    (10,)
    """
    with _whole_file(path, ".pt2") as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No complete tensor found")  # channels-last weights; the parity check sees them
        torch.export.save(_trace(module, image_shape), partial)
        return check_parity(load_program(partial), module, image_shape, tolerance=tolerance)


def export_onnx(
    module: nn.Module,
    path: str | Path,
    image_shape: Sequence[int],
    *,
    output: str = "logits",
    int8: str | None = None,
    tolerance: float = TOLERANCE,
) -> Parity:
    """Write ``path`` (``*.onnx``): the module as an ONNX graph from ``images`` to ``output``, for any number of images at once.

    The file is written atomically, and only if onnxruntime's outputs stand :func:`check_parity`.

    Args:
        module: images (N, C, H, W) to one tensor, in eval mode.
        path: of the file, which holds the weights, too.
        image_shape: (C, H, W), fixed in the graph.
        output: name of the graph's output.
        int8: the part of the module, by its name, whose convolutions get 8-bit weights and inputs (dynamic quantisation):
            ``"purifier"`` in a wrapped model, ``""`` for all of it. That graph is held against the module with the
            tolerance ``INT8_TOLERANCE``, after the float graph with its own.
        tolerance: see :func:`check_parity`.

    Raises:
        ExportError: what torch.export cannot trace with a free number of images, what ONNX has no operators for, weights of
            2 GB or more, nothing to quantise, or a failed parity check.
        ModuleNotFoundError: onnx, onnxscript or onnxruntime are not installed.
        ValueError: a module in training mode, or another suffix.

    >>> module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(export_onnx(module, f"{folder}/module.onnx", (1, 8, 8)).output_shape)
    (10,)
    """
    _need(*_ONNX)
    dtype = random_images(module, 1, image_shape).dtype
    if dtype not in (torch.float32, torch.float16, torch.float64):
        raise ExportError(f"onnxruntime takes no {dtype} images: convert the module to float32 or float16, or export it as pt2")
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    if size >= 2**31:
        raise ExportError(f"one ONNX file holds less than 2 GB, and the weights are {size / 2**30:.1f}; export it as pt2")
    with _whole_file(path, ".onnx") as partial:
        traced = _trace(module, image_shape)  # torch.onnx would fix the number of images where it cannot be free
        with _told(module, "has no ONNX form"):
            graph = torch.onnx.export(
                traced, dynamo=True, input_names=["images"], output_names=[output], dynamic_shapes=_ANY_NUMBER, verbose=False
            )
        assert graph is not None
        graph.save(partial)
        parity = check_parity(load_onnx(partial), module, image_shape, tolerance=tolerance)
        if int8 is not None:
            _quantise(partial, int8)
            parity = check_parity(load_onnx(partial), module, image_shape, tolerance=INT8_TOLERANCE)
        return parity


def load_program(path: str | Path) -> nn.Module:
    """The module in a ``*.pt2`` file: images (N, C, H, W) to outputs, on the device that it was exported on.

    Such a file can run code when it is read, as a pickle can: read none from strangers.

    Raises:
        FileNotFoundError: no such file.

    >>> load_program("nowhere.pt2")
    Traceback (most recent call last):
    FileNotFoundError: no exported program nowhere.pt2
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no exported program {path}")
    module = torch.export.load(path).module()
    module.training = False  # it was traced in eval mode and has no other, but says it had
    return module


def load_onnx(path: str | Path) -> Callable[[Tensor], Tensor]:
    """The function in a ``*.onnx`` file, run by onnxruntime on the processor with as many threads as torch uses.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: onnxruntime is not installed.

    >>> load_onnx("nowhere.onnx")
    Traceback (most recent call last):
    FileNotFoundError: no ONNX file nowhere.onnx
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no ONNX file {path}")
    _need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.detach().cpu().numpy()})[0]).to(images.device)

    return run


def has_onnx() -> bool:
    """Whether what :func:`export_onnx` needs is installed.

    >>> has_onnx() in (True, False)
    True
    """
    return all(importlib.util.find_spec(name) is not None for name in _ONNX)


def random_images(module: nn.Module, count: int, image_shape: Sequence[int]) -> Tensor:
    """Uniform images (count, C, H, W) in [0, 1], always the same, of the dtype and on the device of the module's weights.

    >>> random_images(nn.Linear(2, 1).half(), 3, (1, 2, 2)).dtype
    torch.float16
    """
    weights = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    images = torch.rand(count, *image_shape, generator=torch.Generator().manual_seed(0))
    return images.to(weights.device, weights.dtype)


def _trace(module: nn.Module, image_shape: Sequence[int]) -> ExportedProgram:
    layers = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    if module.training or any(part.training for part in module.modules() if isinstance(part, layers)):
        raise ValueError("expected a module in eval mode, got one in training mode: call .eval() on all of it before the export")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"expected an image shape (C, H, W), got {tuple(image_shape)}")
    images = random_images(module, 2, image_shape)
    with torch.no_grad(), _told(module, f"does not take images of {' × '.join(map(str, image_shape))}"):
        outputs = module(images)
    if not isinstance(outputs, Tensor):
        raise ExportError(f"expected a module that gives one tensor, got {type(outputs).__name__}")
    with _told(module, "cannot be traced by torch.export for any number of images at once"):
        return torch.export.export(module, (images,), dynamic_shapes=_ANY_NUMBER)


@contextmanager
def _told(module: nn.Module, what: str) -> Iterator[None]:
    """The exporters' errors, of any class and many lines, as a short one."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        text = " ".join(str(cause).split())
        raise ExportError(f"{type(module).__name__} {what}: {type(cause).__name__}: {text[:240]}") from error


@contextmanager
def _whole_file(path: str | Path, suffix: str) -> Iterator[Path]:
    """A file to write into, which becomes ``path`` when all went well."""
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"expected a file *{suffix}, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".partial{suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _need(*names: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"ONNX needs {', '.join(missing)}: pip install 'purify-defense[onnx]'")


def _quantise(path: Path, part: str) -> None:
    """Exchange, in the ONNX file, the convolutions of ``part`` for integer ones; their inputs are quantised when they run."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prefix = f"{part}." if part else ""
    nodes = [n.name for n in onnx.load(path).graph.node if n.op_type == "Conv" and n.input[1].startswith(prefix)]
    if not nodes:
        raise ExportError(f"nothing to quantise: no convolution in {part or 'the module'}")
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(path, ready, skip_optimization=True, skip_symbolic_shape=True)
        # unsigned weights: several times faster than signed ones in onnxruntime on a processor, and as exact
        quantize_dynamic(ready, path, op_types_to_quantize=["Conv"], nodes_to_quantize=nodes, weight_type=QuantType.QUInt8)
