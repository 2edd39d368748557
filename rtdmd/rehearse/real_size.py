"""`rtdmd rehearse --real-size`: updates of training at the published size, measured beside `rtdmd plan`'s figures.

A list of measurements, the most important ones first, within a time that is given: each is printed and on disk as soon
as it is known, so that a limit from outside loses nothing. Of each model: both stages as params has them; then the
equations on this device (`rtdmd verify`), losses in bfloat16 beside float32, and both stages with `compile` turned
over.
"""

from __future__ import annotations

import csv
import io
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from rtdmd.common.columns import table
from rtdmd.common.errors import UserError
from rtdmd.common.files import write_atomic
from rtdmd.common.torch_setup import configure
from rtdmd.oracle.setting import Setting
from rtdmd.oracle.statements import check_all
from rtdmd.plan.text import GIB, duration, size
from rtdmd.rehearse import MEASUREMENTS, STAGES
from rtdmd.rehearse.memory import available
from rtdmd.rehearse.real_case import LOSSES, Case, losses_of, measured_updates

FILE = "real_size.csv"
ROOM = 1.1  # of the planned peak, which has to be free
# seconds beside the updates, about
BUILDING = 30.0
COMPILING = 150.0
PROVING = 60.0
AGAIN = 1.0  # seconds from one TimeUp to the next
WARM_UP = "warm-up"
OF_THE_CPU = "DefaultCPUAllocator: can't allocate memory"  # a RuntimeError; torch.OutOfMemoryError is a GPU's
GPU_COUNTS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Options:
    """updates: of each stage, the first of which is not in the mean; device: cpu or cuda; minutes: all together, None:
    no limit; measure: some of MEASUREMENTS; out: the folder of the figures."""

    device: str
    stages: Sequence[str] = STAGES
    updates: int = 2
    minutes: float | None = None
    measure: Sequence[str] = MEASUREMENTS
    out: Path = Path(".rtdmd/rehearse")


@dataclass
class Row:
    """A measurement. seconds: of an update, those after the first where there are more; timed: WARM_UP where there are
    none; samples: images per second; peak: bytes; planned_*: the plan's for the very sizes that ran; note: what else
    there is to say."""

    model: str
    stage: str
    what: str
    images: int = 0
    updates: int = 0
    first_seconds: float | None = None
    seconds: float | None = None
    timed: str = ""
    planned_seconds: float | None = None
    samples: float | None = None
    peak: int | None = None
    planned_peak: int | None = None
    note: str = ""

    @property
    def empty(self) -> bool:
        return self.seconds is None and self.note.startswith(("left out", "did not fit", "stopped"))

    def marked(self, figure: str) -> str:
        """A figure of time, which says so where it is the warm-up's."""
        return f"{figure} ({self.timed})" if self.timed else figure

    def line(self) -> str:
        said = [f"{self.model} {self.stage} {self.what}:".replace("  ", " ")]
        if self.seconds is not None:
            planned = "" if self.planned_seconds is None else f" (planned {self.planned_seconds:.3g})"
            said.append(f"{self.marked(f'{self.seconds:.3g} s an update')}{planned}, {self.samples:.3g} images/s;")
        if self.peak is not None and self.planned_peak is not None:
            ratio = self.planned_peak / self.peak
            said.append(f"peak {size(self.peak)}, planned {size(self.planned_peak)} ({ratio:.2f} of it);")
        return " ".join([*said, self.note]).rstrip(" ;")


class TimeUp(BaseException):
    """The minutes are over. Like KeyboardInterrupt no `Exception`, so that no library swallows it."""


@dataclass
class Sheet:
    """The rows so far, in a file that is whole after each."""

    path: Path
    rows: list[Row] = field(default_factory=list)

    def save(self) -> None:
        """All rows; the open one as it is."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [one.name for one in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        write_atomic(self.path, text.getvalue())


Measure = Callable[[Sheet], None]


def rehearse(cases: Mapping[str, Case], options: Options) -> list[Row]:
    """Measure and print all, as far as time and memory go. UserError without the device, and where nothing at all was
    measured."""
    require_device(cases, options)
    cases = {name: case.changed({"run": {"device": options.device}}) for name, case in cases.items()}
    device = configure(next(iter(cases.values())).params.run)
    sheet = Sheet(options.out / FILE)
    began = time.monotonic()
    running = False
    try:
        with time_box(None if options.minutes is None else 60 * options.minutes):
            for row, seconds, measure in planned_measurements(cases, options, device):
                sheet.rows.append(row)
                left = None if options.minutes is None else 60 * options.minutes - (time.monotonic() - began)
                if left is not None and seconds > left:
                    row.note = f"left out: needs about {seconds:.0f} s of the {left:.0f} s that are left"
                elif not row.note:
                    free = available(device)
                    running = True
                    _measured(measure, sheet, free)
                    running = False
                sheet.save()
                print(row.line(), flush=True)
    except TimeUp:
        print(f"The {options.minutes:g} minutes are over.")
        if running:
            sheet.rows[-1].note = "stopped: the minutes are over; raise --minutes"
            sheet.save()
            print(sheet.rows[-1].line(), flush=True)
    if all(row.empty for row in sheet.rows):
        first = sheet.rows[0].line() if sheet.rows else "the time was over before; raise --minutes"
        raise UserError(f"--real-size: nothing was measured; {first}")
    print("\n" + closing_tables(cases, sheet.rows, options))
    print(f"\nAll figures: {sheet.path}")
    return sheet.rows


def _measured(measure: Measure, sheet: Sheet, free: int) -> None:
    """Fill the last row; where memory runs out, it says that ``free`` bytes were not enough."""
    try:
        measure(sheet)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and OF_THE_CPU not in str(error):
            raise
        row = sheet.rows[-1]
        offer = "; lower --images or --blocks" if row.images else ""
        row.note = f"did not fit: {size(free)} were free{offer}"


@contextmanager
def time_box(seconds: float | None) -> Iterator[None]:
    """TimeUp after so many seconds inside (in the main thread), and again while it goes on: one that is raised in a
    finaliser is printed there and lost."""

    def over(*_: object) -> None:
        raise TimeUp

    if seconds is None:
        yield
        return
    former = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def planned_measurements(
    cases: Mapping[str, Case], options: Options, device: torch.device
) -> Iterator[tuple[Row, float, Measure]]:
    """(row, seconds that it will take, how to fill it), the most important first. Rows of what does not fit this
    device's memory say so."""
    asked = [(name, case, stage) for name, case in cases.items() for stage in options.stages]
    if "updates" in options.measure:
        for name, case, stage in asked:
            yield _updates(name, case, stage, options, device)
    if "verify" in options.measure:
        dtype = next(iter(cases.values())).params.model.dtype
        yield Row("equations", "", f"{dtype} on {device.type}"), PROVING, lambda sheet: _verify(sheet, device, dtype)
    if "losses" in options.measure:
        for name, case, stage in asked:
            yield _losses(name, case, stage, device)
    if "compile" in options.measure:
        for name, case, stage in asked:
            turned = not getattr(case.params, stage).compile
            yield _updates(name, case.changed({stage: {"compile": turned}}), stage, options, device)


def _updates(name: str, case: Case, stage: str, options: Options, device: torch.device) -> tuple[Row, float, Measure]:
    compiled = getattr(case.params, stage).compile
    row = Row(name, stage, f"{case.params.model.dtype}{', compile: true' if compiled else ''}{case.cut}")
    row.images = case.images(stage)
    row.planned_peak = round(case.memory(stage).peak)
    speed = case.speed(device)
    row.planned_seconds = None if speed is None else case.flops(stage) / speed
    row.note = _too_large(case, row.planned_peak, device)
    about = 1.5 * options.updates * (row.planned_seconds or 0.0) + BUILDING + COMPILING * compiled

    def measure(sheet: Sheet) -> None:
        for seconds, peak in measured_updates(case, stage, options.updates, device):
            row.updates += 1
            if row.updates == 1:
                row.first_seconds = mean = seconds
                row.timed = WARM_UP
            else:
                mean = ((row.updates - 2) * mean + seconds) / (row.updates - 1)
                row.timed = ""
            row.peak = peak if row.updates <= 2 else max(row.peak or 0, peak)  # the first warms up
            row.seconds = mean
            row.samples = row.images / mean
            sheet.save()

    return row, about, measure


def _losses(name: str, case: Case, stage: str, device: torch.device) -> tuple[Row, float, Measure]:
    """The losses of one update in bfloat16 and in float32: same weights, texts and random numbers."""
    small = case.small()
    row = Row(name, stage, f"bfloat16 against float32{case.cut}", images=small.images(stage))
    row.note = _too_large(small, 2 * small.memory(stage).peak, device)
    speed = small.speed(device, "float32")
    about = 2 * BUILDING + (0.0 if speed is None else 3 * small.flops(stage) / speed)

    def measure(sheet: Sheet) -> None:
        low, high = (losses_of(small, stage, dtype, device) for dtype in ("bfloat16", "float32"))
        apart = {key: abs(low[key] - high[key]) / abs(high[key]) for key in LOSSES if high.get(key)}
        row.note = "apart by " + ", ".join(f"{key} {value:.1e}" for key, value in apart.items())

    return row, about, measure


def _verify(sheet: Sheet, device: torch.device, dtype: Any) -> None:
    """`rtdmd verify` on this device, as a row's note."""
    began = time.monotonic()
    results = list(check_all(Setting(device.type, dtype)))
    failed = [one.statement.name for one in results if not one.passed]
    sheet.rows[-1].note = (
        f"{len(results) - len(failed)} of {len(results)} statements hold, {time.monotonic() - began:.1f} s"
        + (f"; these fail: {' '.join(failed)}" if failed else "")
    )


def _too_large(case: Case, peak: float, device: torch.device) -> str:
    """Why a measurement is not begun: before the machine swaps."""
    free = available(device)
    if ROOM * peak <= free:
        return ""
    return f"left out: needs {size(ROOM * peak)}, {size(free)} are free; lower --images (now {case.size}) or --blocks"


def require_device(cases: Mapping[str, Case], options: Options) -> None:
    """UserError without a GPU where one is asked for: what the CPU would take, and how."""
    if options.device == "cpu" or torch.cuda.is_available():
        return
    cpu = torch.device("cpu")
    free = available(cpu)
    offered = {name: replace(case, size=1) for name, case in cases.items()}
    blocks = None
    while (most := _most(offered, options)) * ROOM > free and blocks != 1:
        blocks = max(1, min(case.blocks for case in offered.values()) // 2)
        offered = {name: case.shallower(blocks) for name, case in offered.items()}
    flops = sum(case.flops(stage) / case.cpu_speed() for case in offered.values() for stage in options.stages)
    asked = f"--device cpu --images 1{'' if blocks is None else f' --blocks {blocks}'} --measure updates"
    fits = "" if most * ROOM <= free else ", which do not fit: close other programs"
    raise UserError(
        f"--real-size: torch sees no CUDA device here. With `{asked}` the CPU takes about"
        f" {duration(options.updates * flops / 3600)} and {most / GIB:.1f} GiB of the {free / GIB:.1f} GiB that are"
        f" free{fits}"
    )


def _most(cases: Mapping[str, Case], options: Options) -> float:
    return max(case.memory(stage).peak for case in cases.values() for stage in options.stages)


def closing_tables(cases: Mapping[str, Case], rows: Sequence[Row], options: Options) -> str:
    """Measured beside planned, and what that makes of whole stages on several GPUs."""
    head = ["model", "stage", "images", "s / update", "planned", "images / s", "peak", "planned", "planned / measured"]
    body = [
        [
            row.model,
            f"{row.stage} {row.what}",
            str(row.images),
            row.marked(f"{row.seconds:.3g}"),
            "-" if row.planned_seconds is None else f"{row.planned_seconds:.3g}",
            row.marked(f"{row.samples:.3g}"),
            size(row.peak or 0),
            size(row.planned_peak or 0),
            f"{(row.planned_peak or 0) / (row.peak or 1):.2f}",
        ]
        for row in rows
        if row.seconds is not None
    ]
    whole = [["model", "stage", "GPUs", "s / update", "planned", "whole stage", "planned peak"]]
    device = torch.device(options.device)
    for name, case in cases.items():
        for stage in options.stages:
            own = next((row for row in rows if (row.model, row.stage) == (name, stage) and row.samples), None)
            if own is not None and not case.cut:
                for count, seconds, planned, hours, peak in case.on_gpus(stage, own.samples or 1, device, GPU_COUNTS):
                    whole.append([name, stage, count, own.marked(seconds), planned, own.marked(hours), peak])
    return "\n\n".join(table(lines) for lines in ([head, *body], whole) if len(lines) > 1)
