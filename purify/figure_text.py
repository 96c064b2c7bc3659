"""Words in figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["read_literally"]


def read_literally(figure: Figure) -> None:
    """A ``$`` in titles, labels and legends is a ``$``: matplotlib would take what stands between two of them for mathematics,
    or refuse it, and they hold names of files. To be called before the figure is laid out. (Ticks are mathematics.)

    >>> import matplotlib.pyplot as plt
    >>> figure = plt.figure()
    >>> title = figure.suptitle("$a_$.jpg")
    >>> read_literally(figure)
    >>> figure.tight_layout()  # without: ValueError
    >>> plt.close(figure)
    """
    words = [*figure.texts]
    for axis in figure.axes:
        legend = axis.get_legend()
        words += [axis.title, axis.xaxis.label, axis.yaxis.label, *(legend.get_texts() if legend else ())]
    for word in words:
        word.set_parse_math(False)
