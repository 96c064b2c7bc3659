"""What purifier and classifier cost in each runtime, measured side by side."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from purify.export import export_onnx, export_program, has_onnx, load_onnx, load_program, random_images

__all__ = ["latency_table"]


def latency_table(
    defended: nn.Module,
    image_shape: Sequence[int],
    *,
    bare: nn.Module | None = None,
    batch_sizes: Sequence[int] = (1, 32),
    repeats: int = 30,
) -> str:
    """Milliseconds a batch, in PyTorch, as pt2 and, where it is installed, in onnxruntime: a Markdown table.

    Everything is measured in one run: in each of ``repeats`` rounds each runtime and module gets the same batch in turn, so that
    a processor that slows down slows all of them; the medians are shown. In PyTorch a wrapped model checks its input, as always;
    exported, it does not.

    Args:
        defended: purifier and classifier, or a purifier alone, in eval mode.
        image_shape: (C, H, W).
        bare: the classifier alone, for what the purifier adds.
        batch_sizes: images at once.
        repeats: rounds, after one that does not count.

    Raises:
        ExportError: see :func:`purify.export.export_program`.
        ValueError: fewer than 1 round, or see there.

    >>> module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    >>> print(latency_table(module, (1, 8, 8), batch_sizes=(2,), repeats=1))  # doctest: +ELLIPSIS
    Milliseconds ...
    <BLANKLINE>
    | runtime | batch | bare | defended | added | added / bare |
    | --- | --- | --- | --- | --- | --- |
    | PyTorch | 2 | – | ... | – | – |
    ...
    """
    if repeats < 1:
        raise ValueError(f"expected at least 1 round to measure, got {repeats}")
    modules = {"defended": defended} if bare is None else {"bare": bare, "defended": defended}
    contestants = {
        (runtime, name): run for name, module in modules.items() for runtime, run in _in_each_runtime(module, image_shape).items()
    }
    medians = {size: _medians(contestants, random_images(defended, size, image_shape), repeats) for size in batch_sizes}
    images, threads = random_images(defended, 1, image_shape), torch.get_num_threads()
    lines = [
        f"Milliseconds for a batch (N, {', '.join(map(str, image_shape))}), {str(images.dtype).removeprefix('torch.')}, on "
        f"{images.device.type} with {threads} thread{'s' if threads > 1 else ''}; medians of {repeats} rounds of one run; "
        f"torch {torch.__version__}{_onnxruntime_version()}.",
        "",
        "| runtime | batch | bare | defended | added | added / bare |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for runtime in dict.fromkeys(runtime for runtime, _ in contestants):
        for size, found in medians.items():
            lines.append(_row(runtime, size, found[runtime, "defended"], found.get((runtime, "bare"))))
    return "\n".join(lines)


def _in_each_runtime(module: nn.Module, image_shape: Sequence[int]) -> dict[str, Callable[[Tensor], Tensor]]:
    functions: dict[str, Callable[[Tensor], Tensor]] = {"PyTorch": module}
    with tempfile.TemporaryDirectory() as folder:  # what is loaded needs its file no more
        export_program(module, Path(folder) / "module.pt2", image_shape)
        functions["pt2"] = load_program(Path(folder) / "module.pt2")
        if has_onnx():
            export_onnx(module, Path(folder) / "module.onnx", image_shape)
            functions["onnxruntime"] = load_onnx(Path(folder) / "module.onnx")
    return functions


def _medians(
    functions: dict[tuple[str, str], Callable[[Tensor], Tensor]], images: Tensor, repeats: int
) -> dict[tuple[str, str], float]:
    """Milliseconds that each function takes for ``images``, one after the other in every round."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in functions}
    with torch.no_grad():
        for turn in range(repeats + 1):
            for key, function in functions.items():
                started = time.perf_counter()
                function(images)
                if images.is_cuda:
                    torch.cuda.synchronize()
                if turn:  # the first warms up
                    times[key].append(1000 * (time.perf_counter() - started))
    return {key: statistics.median(values) for key, values in times.items()}


def _row(runtime: str, batch: int, defended: float, bare: float | None) -> str:
    cells = [runtime, str(batch)]
    if bare is None:
        cells += ["–", f"{defended:.3g}", "–", "–"]
    else:
        cells += [f"{bare:.3g}", f"{defended:.3g}", f"{defended - bare:.3g}", f"{defended / bare - 1:.2f}"]
    return f"| {' | '.join(cells)} |"


def _onnxruntime_version() -> str:
    if not has_onnx():
        return "; onnxruntime is not installed"
    import onnxruntime

    return f", onnxruntime {onnxruntime.__version__}"
