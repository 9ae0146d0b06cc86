"""The grid at a glance, as a terminal shows it."""

import io

from rich.console import Console

from lovasz_repro.config.schema import load_experiment
from lovasz_repro.host.progress import Progress
from lovasz_repro.run.experiment import Overview


def drawn(overview: Overview) -> list[list[str]]:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(overview.table())
    return [line.split() for line in capture.get().splitlines()]


def test_what_became_of_each_run_stands_in_its_place() -> None:
    cells = load_experiment("voc-binary").cells("demo", categories=["cat", "person"])
    overview = Overview(cells, Progress())
    of = {cell.name.removesuffix("-b10-s0"): cell for cell in cells}
    overview.done(of["cross-entropy-cat"], {"val/image_iou": 0.4567})
    overview.running(of["lovasz-hinge-cat"])
    overview.failed(of["hinge-person"])
    overview.elsewhere(of["soft-iou-person"])
    overview.running(of["basis"])  # not one of the cells that are shown
    assert drawn(overview) == [
        ["cross-", "lovasz-", "soft-"],
        ["image-IoU", "entropy", "hinge", "hinge", "iou"],
        ["cat", "45.7%", "·", "▸", "·"],
        ["person", "·", "failed", "·", "elsewhere"],
    ]


def test_twenty_classes_fit_on_a_screen_and_seeds_are_told_apart() -> None:
    loaded = load_experiment("voc-binary")
    lines = drawn(Overview(loaded.cells("paper"), Progress()))
    assert len(lines) == 12
    assert (lines[2][0], lines[2][5]) == ("aeroplane", "diningtable")
    two = loaded.cells("demo", categories=["cat"], seeds=[0, 1])
    assert [line[:3] for line in drawn(Overview(two, Progress()))[2:]] == [
        ["cat", "b10", "s0"],
        ["cat", "b10", "s1"],
    ]


def test_it_stands_above_the_bars_until_it_is_closed() -> None:
    terminal = Console(force_terminal=True, width=80, height=30, file=io.StringIO())
    progress = Progress(terminal)
    overview = Overview(load_experiment("voc-binary").cells("demo"), progress)
    with progress:
        task = progress.task("runs", 13)
        bars = list(progress._bars.get_renderables())
        assert len(bars) == 2
        overview.close()
        assert len(list(progress._bars.get_renderables())) == 1
        task.close()
    other = Progress(terminal)
    Overview(load_experiment("camvid-enet").cells("demo"), other)
    assert other.header is None
