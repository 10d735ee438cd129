"""Pictures of runs, by matplotlib."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.files import check_writable, replace_file
from simulations.curves import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers and on light and dark grounds
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_DASHES = ("-", "--", "-.", ":")
_INK = "#222222"
_SIZE = (4.4, 3.0)
FORMATS = (".svg", ".png", ".pdf")
_DATES = {"svg": ["Date"], "pdf": ["CreationDate"]}  # would make equal pictures differ

Draw = Callable[["Axes"], None]


def svg(draw: Draw) -> str:
    """A picture as an ``svg`` element on a transparent ground, its writing in the page's colour."""
    with _figure() as figure:
        draw(figure.add_subplot())
        text = _content(figure, "svg", transparent=True).decode()
    return text[text.index("<svg") :].replace(_INK, "currentColor")


def save(draw: Draw, path: Path) -> None:
    """A picture as a file, in the format of its ending, whole or not at all.

    Raises:
        ValueError: if there is no such format, matplotlib is not installed, or the file cannot be
            written.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: give a name that ends in {', '.join(FORMATS)}")
    try:
        with _figure() as figure:
            figure.set_size_inches(7, 4.2)
            draw(figure.add_subplot())
            write(figure, path, dpi=150)
    except ModuleNotFoundError as error:
        raise ValueError(f"a picture needs {error.name}; install csg-fl[plots]") from error


def write(figure: "Figure", path: Path, *, dpi: int | None = None) -> None:
    """A figure as a file, in the format of its ending, whole or not at all.

    Equal figures give equal bytes.

    Raises:
        ValueError: if the file cannot be written.
    """
    content = _content(figure, path.suffix[1:], dpi=dpi)
    check_writable(path)
    replace_file(path, content)


def accuracy_by_round(runs: list[RunData]) -> Draw:
    """Test accuracy against the round."""

    def draw(axes: "Axes") -> None:
        for run, look in _styled(runs):
            axes.plot([row.round for row in run.evaluated], run.accuracies, **look)
        _finish(axes, "round", "test accuracy, %", runs)

    return draw


def accuracy_by_megabytes(runs: list[RunData]) -> Draw:
    """Test accuracy against cumulative payload."""

    def draw(axes: "Axes") -> None:
        for run, look in _styled(runs):
            sent = [run.megabytes_until(row.round) for row in run.evaluated]
            axes.plot(sent, run.accuracies, **look)
        _finish(axes, "payload so far, MB, all clients, up and down", "test accuracy, %", runs)

    return draw


def losses(runs: list[RunData]) -> Draw:
    """Test loss, and thinner the clients' training loss, against the round."""

    def draw(axes: "Axes") -> None:
        for run, look in _styled(runs):
            axes.plot(
                [r.round for r in run.evaluated],
                [r.test_loss or 0.0 for r in run.evaluated],
                **look,
            )
            look |= {"linewidth": 0.8, "alpha": 0.7, "label": None}
            axes.plot([r.round for r in run.rows], [r.train_loss for r in run.rows], **look)
        _finish(axes, "round", "loss: test thick, training thin", runs)

    return draw


def payload_by_round(runs: list[RunData]) -> Draw:
    """Payload of a round, up and down."""

    def draw(axes: "Axes") -> None:
        for run, look in _styled(runs):
            rounds = [row.round for row in run.rows]
            axes.plot(rounds, [r.payload_bytes_up / 1e6 for r in run.rows], **look)
            look |= {"linewidth": 0.8, "alpha": 0.7, "label": None}
            axes.plot(rounds, [r.payload_bytes_down / 1e6 for r in run.rows], **look)
        axes.set_ylim(bottom=0)
        _finish(axes, "round", "payload, MB: up thick, down thin", runs)

    return draw


def spread(counts: list[list[int]]) -> Draw:
    """Images of every client by class, clients with many more than can be told apart as a map."""

    def draw(axes: "Axes") -> None:
        image = axes.imshow(counts, aspect="auto", cmap="viridis", interpolation="nearest")
        axes.set_xlabel("class")
        axes.set_ylabel("client")
        axes.set_xticks(range(len(counts[0])))
        if len(counts) <= 20:
            axes.set_yticks(range(len(counts)))
        bar = axes.figure.colorbar(image, ax=axes)
        bar.set_label("images")

    return draw


@contextmanager
def _figure() -> Iterator["Figure"]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    keys = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    looks: Any = dict.fromkeys(keys, _INK)
    looks |= {"font.size": 9, "legend.framealpha": 0.0}
    with mpl.rc_context(looks):
        yield Figure(figsize=_SIZE, layout="constrained")


def _content(figure: "Figure", kind: str, **how: Any) -> bytes:
    """A file's content; ``how`` is for matplotlib."""
    import matplotlib as mpl

    buffer, undated = io.BytesIO(), dict.fromkeys(_DATES.get(kind, ()))
    with mpl.rc_context({"svg.hashsalt": "csg-fl"}):
        figure.savefig(buffer, format=kind, metadata=undated, **how)
    return buffer.getvalue()


def _styled(runs: list[RunData]) -> Iterator[tuple[RunData, dict[str, Any]]]:
    for number, run in enumerate(runs):
        yield (
            run,
            {
                "color": _COLOURS[number % len(_COLOURS)],
                "linestyle": _DASHES[number // len(_COLOURS) % len(_DASHES)],
                "marker": "o" if len(run.evaluated) == 1 else None,
                "label": run.name,
            },
        )


def _finish(axes: "Axes", x: str, y: str, runs: list[RunData]) -> None:
    if x == "round":
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    if len(runs) > 1:
        axes.legend(fontsize=7)
