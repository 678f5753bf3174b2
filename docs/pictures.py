"""Make the documents' pictures: `python docs/pictures.py chart|house|journey|demo`, each with `--help`.

Everything that they show is measured or read: ratios from figures.json, floors from the imports of the code, scores
from a checkpoint that `make demo` trained. Runs anywhere.
"""

from __future__ import annotations

import ast
import io
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tpn_ray.clips.sampling import test_indices
from tpn_ray.predict.predictor import Predictor, load
from tpn_ray.videos.decode import open_video

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
PACKAGE = HERE.parent / "tpn_ray"

INK, FAINT, PAPER, ACCENT, SOFT = "#1f2933", "#7b8794", "#ffffff", "#4051b5", "#e8eaf6"

STATIONS = (
    ("stored video", "an object in a bucket,\nor a row of a shard"),
    ("place in the plan", "a function of seed,\nepoch and dataset"),
    ("bytes", "one ranged read\nfrom a shard"),
    ("frame indices", "T frames at stride tau,\nor one of each segment"),
    ("planes or pixels", "uint8, only the frames\nthat were asked for"),
    ("block", "whole micro-batches\nin Ray's object store"),
    ("float n c t h w", "augmented and normalized\non the device"),
    ("levels", "res4 and res5\nof the backbone"),
    ("pyramid", "alpha pools time,\nthe flow mixes levels"),
    ("scores n k", "averaged over views:\none row for each video"),
)
"""What a clip is on its way, and a line about it; docs/architecture.md names the code."""


def chart() -> None:
    """Draw the measured ratios of figures.json with their ranges."""
    write("decode.svg", ratios(json.loads((HERE / "figures.json").read_text())))


def house() -> None:
    """Draw the packages, each on a floor above all that it imports."""
    write("house.svg", rooms(floors(imports())))


def journey() -> None:
    """Draw what a clip is on its way from storage to the scores."""
    write("journey.svg", stations(STATIONS))


def demo(checkpoint: str, data: str, videos: Sequence[str] = ("period_12", "period_25", "period_49")) -> None:
    """Play a validation video of some classes beside the scores that a checkpoint gives it.

    Args:
        checkpoint: Checkpoint of `make demo`, such as runs/demo/NAME/step-00000240.
        data: Videos of `make demo`, such as runs/demo/videos.
        videos: Classes, of each of which the first validation video is shown.
    """
    predictor = load(checkpoint)
    files = [sorted((Path(data) / "val" / name).iterdir())[0] for name in videos]
    frames = [frame for file in files for frame in played(predictor, file)]
    file = io.BytesIO()
    options = {"duration": 80, "loop": 0, "quality": 70, "method": 6, "minimize_size": True}
    frames[0].save(file, "webp", save_all=True, append_images=frames[1:], **options)
    write("demo.webp", file.getvalue())


def write(name: str, content: bytes) -> None:
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / name).write_bytes(content)
    print(f"{PICTURES / name}: {len(content):,} bytes")


# The chart


def ratios(figures: Mapping[str, Any]) -> bytes:
    """Draw bars of ratios with whiskers from the lowest round to the highest."""
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "tpn_ray", "font.size": 11, "text.color": INK}
    from matplotlib import pyplot as plt

    bars = figures["bars"]
    names = [bar["name"] for bar in bars]
    middles = np.array([float(bar["ratio"]) for bar in bars])
    ends = np.array([[float(end) for end in bar["range"]] for bar in bars]).T
    figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
    places = np.arange(len(bars))[::-1]
    axes.barh(places, middles, color=ACCENT, height=0.55)
    whiskers = np.abs(ends - middles)
    axes.errorbar(middles, places, xerr=whiskers, fmt="none", ecolor=INK, elinewidth=1.2, capsize=4)
    for place, bar, end in zip(places, bars, ends[1], strict=True):
        axes.text(end + 0.08, place, bar["ratio"], va="center", weight="bold")
    axes.axvline(1, color=FAINT, linestyle="--", linewidth=1.2)
    axes.text(1, len(bars) - 0.52, f" {figures['baseline']}", color=FAINT, va="bottom", ha="center", fontsize=10)
    axes.set_yticks(places, names)
    axes.set(xlim=(0, 4.6), ylim=(-0.5, len(bars) - 0.5))
    figure.suptitle(figures["title"], x=0.01, ha="left", fontsize=12, weight="bold")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    source = f"{figures['command']}, {figures['date']}, commit {figures['commit']}: median and range of the rounds"
    figure.supxlabel(source, x=0.01, ha="left", fontsize=9, color=FAINT)
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return b"\n".join(line.rstrip() for line in file.getvalue().splitlines()) + b"\n"


# The house


def imports() -> dict[str, set[str]]:
    """Find what each part of the package (a package in it, or a module of its own) imports of the others."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        names = {
            f"{node.module}.{alias.name}".split(".")[1]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name
            for alias in node.names
        }
        found.setdefault(part, set()).update(names - {part})
    del found["__init__"]
    return {part: names & found.keys() for part, names in found.items()}


def floors(imported: Mapping[str, set[str]]) -> list[list[str]]:
    """Put each part on a floor above all that it imports, ground floor first; a circle shares a floor."""
    below = {part: _reached(part, imported) for part in imported}

    def floor(part: str) -> int:
        return 1 + max((floor(other) for other in below[part] if part not in below[other]), default=-1)

    heights = {part: floor(part) for part in imported}
    return [sorted(part for part in heights if heights[part] == one) for one in range(max(heights.values()) + 1)]


def _reached(part: str, imported: Mapping[str, set[str]]) -> set[str]:
    seen, waiting = set[str](), [part]
    while waiting:
        new = imported[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def rooms(floors: Sequence[Sequence[str]]) -> bytes:
    """Draw the floors as rows of rooms: packages are wide and tinted, single modules are narrow and white."""
    width, gap, top = 1120, 10, 84.0
    shapes = [
        f'<polygon points="{width / 2},8 {width - 8},{top - gap} 8,{top - gap}" fill="{ACCENT}"/>',
        text(width / 2, 52, "jobs/", size=19, fill=PAPER, weight="bold"),
        text(width / 2, 69, "one command each", size=12, fill=PAPER),
    ]
    for parts in reversed(floors):
        shares = [2.0 if (PACKAGE / part).is_dir() else 1.0 for part in parts]
        unit = (width - gap * (len(parts) - 1) - 16) / sum(shares)
        lines = [_about(part, int(share * unit / 6.4)) for part, share in zip(parts, shares, strict=True)]
        left, height = 8.0, 38 + 15 * max(map(len, lines))
        for part, share, about in zip(parts, shares, lines, strict=True):
            fill, stroke = (SOFT, ACCENT) if (PACKAGE / part).is_dir() else (PAPER, FAINT)
            shapes.append(
                f'<rect x="{left:.1f}" y="{top:g}" width="{share * unit:.1f}" height="{height}" rx="6" '
                f'fill="{fill}" stroke="{stroke}"/>'
            )
            middle, name = left + share * unit / 2, f"{part}/" if fill == SOFT else f"{part}.py"
            shapes.append(text(middle, top + 24, name, size=15, weight="bold"))
            shapes += [text(middle, top + 42 + 15 * i, line, size=12, fill=FAINT) for i, line in enumerate(about)]
            left += share * unit + gap
        top += height + gap
    return svg(width, top, shapes)


def _about(part: str, characters: int) -> list[str]:
    """The first sentence of a part's docstring, in at most four lines."""
    file = PACKAGE / part / "__init__.py" if (PACKAGE / part).is_dir() else PACKAGE / f"{part}.py"
    first = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0].split(". ")[0].rstrip(".")
    lines = textwrap.wrap(first.removeprefix(f"{part.upper()}: ").replace("`", ""), characters)
    return [*lines[:3], f"{lines[3]} ..."] if len(lines) > 4 else lines


# The journey


def stations(stops: Sequence[tuple[str, str]]) -> bytes:
    """Draw the stops as two rows of boxes; arrows lead from one to the next."""
    columns = (len(stops) + 1) // 2
    wide, high, gap, between = 196, 92, 28, 44
    width, height = columns * wide + (columns - 1) * gap + 16, 2 * high + between + 16
    shapes = [
        f'<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="{ACCENT}"/></marker></defs>'
    ]
    for number, (name, about) in enumerate(stops):
        row, column = divmod(number, columns)
        left, top = 8 + column * (wide + gap), 8 + row * (high + between)
        shapes.append(
            f'<rect x="{left}" y="{top}" width="{wide}" height="{high}" rx="6" fill="{SOFT}" stroke="{ACCENT}"/>'
        )
        shapes.append(text(left + wide / 2, top + 30, f"{number + 1}. {name}", size=15, weight="bold"))
        for i, line in enumerate(about.split("\n")):
            shapes.append(text(left + wide / 2, top + 54 + 17 * i, line, size=12.5, fill=FAINT))
        if column + 1 < columns and number + 1 < len(stops):
            shapes.append(_arrow(f"M{left + wide + 2},{top + high / 2} H{left + wide + gap - 2}"))
    turn = 8 + high + between / 2
    shapes.append(_arrow(f"M{width - 8 - wide / 2},{8 + high + 2} V{turn} H{8 + wide / 2} V{8 + high + between - 2}"))
    return svg(width, height, shapes)


def _arrow(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="{ACCENT}" stroke-width="1.6" marker-end="url(#tip)"/>'


def text(x: float, y: float, content: str, *, size: float, fill: str = INK, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" font-weight="{weight}" '
        f'text-anchor="middle">{escape(content)}</text>'
    )


def svg(width: float, height: float, shapes: Sequence[str]) -> bytes:
    """Put shapes on white paper, readable on a dark page too."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        'font-family="Helvetica, Arial, sans-serif">'
    )
    paper = f'<rect width="{width:g}" height="{height:g}" rx="8" fill="{PAPER}"/>'
    return "\n".join([head, paper, *shapes, "</svg>", ""]).encode()


# The demo

WIDE, HIGH, SCALE = 760, 288, 2


def played(predictor: Predictor, file: Path) -> list[Image.Image]:
    """Draw every second frame of a video with its movement so far, and the scores of all classes."""
    with open_video(file.read_bytes()) as video:
        frames = video.frames(range(video.frame_count))
    (seen,) = test_indices(predictor.recipe.clip, len(frames), 1)
    (scores,) = predictor.predict(str(file)).top(len(predictor.recipe.model.label_sets) * 100).values()
    moved = movement(frames)
    return [_page(frames, at, moved, seen, dict(scores), file.parent.name) for at in range(0, len(frames), 2)]


def movement(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The first principal component of the pixels over time, between -1 and 1: what moves most in the picture."""
    pixels = frames.reshape(len(frames), -1).astype(np.float64)
    first = np.linalg.svd(pixels - pixels.mean(axis=0), full_matrices=False)[0][:, 0]
    scaled: NDArray[np.float64] = first / np.abs(first).max()
    return scaled


def _page(
    frames: NDArray[np.uint8],
    at: int,
    moved: NDArray[np.float64],
    seen: NDArray[np.int64],
    scores: Mapping[str, float],
    truth: str,
) -> Image.Image:
    page = Image.new("RGB", (WIDE * SCALE, HIGH * SCALE), PAPER)
    page.paste(Image.fromarray(frames[at]).resize((192 * SCALE, 192 * SCALE), Image.Resampling.BICUBIC), _at(16, 34))
    draw = ImageDraw.Draw(page)
    _write(draw, 16, 12, "a validation video", bold=True)
    _write(draw, 232, 12, "its movement, and the clip's frames", bold=True)
    _write(draw, 516, 12, "the network's scores", bold=True)
    _curve(draw, moved, at, seen)
    _write(draw, 16, 240, f"class: {truth}", bold=True)
    _write(draw, 16, 260, f"one pulse takes about {int(truth.rpartition('_')[2])} frames", fill=FAINT)
    best = max(scores, key=lambda name: scores[name])
    for row, name in enumerate(sorted(scores)):
        top, fill = 38 + 25 * row, ACCENT if name == best else FAINT
        _write(draw, 516, top + 1, name, fill=INK if name == truth else FAINT, bold=name == truth)
        draw.rectangle((*_at(594, top), *_at(594 + 104 * scores[name] + 1, top + 16)), fill=fill)
        _write(draw, 594 + 104 * scores[name] + 6, top + 1, f"{scores[name]:.2f}", fill=fill)
    return page.resize((WIDE, HIGH), Image.Resampling.LANCZOS)


def _curve(draw: ImageDraw.ImageDraw, moved: NDArray[np.float64], at: int, seen: NDArray[np.int64]) -> None:
    points = [_at(232 + 250 * i / (len(moved) - 1), 130 - 78 * value) for i, value in enumerate(moved)]
    draw.line((*_at(232, 130), *_at(482, 130)), fill=SOFT, width=SCALE)
    draw.line(points, fill="#c5cae9", width=2 * SCALE)
    draw.line(points[: at + 1], fill=ACCENT, width=2 * SCALE)
    for index in seen.tolist():
        _dot(draw, points[index], 4, ACCENT if index <= at else "#c5cae9")
    _dot(draw, points[at], 6, "#e65100")
    _write(draw, 232, 240, f"frame {at} of {len(moved)}")
    _write(draw, 232, 260, f"clip: {len(seen)} frames at stride {seen[1] - seen[0]}", fill=FAINT)


def _at(x: float, y: float) -> tuple[int, int]:
    return round(x * SCALE), round(y * SCALE)


def _dot(draw: ImageDraw.ImageDraw, middle: tuple[int, int], radius: float, fill: str) -> None:
    x, y, r = *middle, radius * SCALE
    draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _write(draw: ImageDraw.ImageDraw, x: float, y: float, content: str, *, fill: str = INK, bold: bool = False) -> None:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, 12 * SCALE)
    draw.text(_at(x, y), content, fill=fill, font=font)


if __name__ == "__main__":
    commands: dict[str, Callable[..., Any]] = {"chart": chart, "house": house, "journey": journey, "demo": demo}
    tyro.extras.subcommand_cli_from_dict(commands, prog="python docs/pictures.py", description=__doc__)
