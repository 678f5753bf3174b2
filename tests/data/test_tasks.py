"""Rows of real videos: deterministic, complete, and honest about what cannot be used."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.videos import hostile, videos
from tpn_ray import recipes
from tpn_ray.clips import decoding, rows
from tpn_ray.clips.cut import all_views
from tpn_ray.clips.develop import clips_of_block, develop
from tpn_ray.clips.notes import NOTHING, PLANES, from_array
from tpn_ray.clips.seen import of_row
from tpn_ray.clips.views import parse_views
from tpn_ray.data import tasks
from tpn_ray.data.plan import PlannedMicroBatch
from tpn_ray.data.tasks import ClipSource, evaluation_rows, training_rows, view_rows, window_rows
from tpn_ray.datasets import reader
from tpn_ray.datasets.manifest import Manifest, load_manifest
from tpn_ray.datasets.toy import ToyConfig, draw_toy, encode_toy
from tpn_ray.errors import StorageError
from tpn_ray.predict.sheet import whole_videos
from tpn_ray.sandbox.process import Sandbox, SandboxLimits


@pytest.fixture(scope="module")
def source(toy_folder: Path) -> ClipSource:
    recipe = recipes.toy()
    manifest = load_manifest(str(toy_folder)).select("train")
    return ClipSource(manifest=manifest, clip=recipe.clip, augment=recipe.augment, seed=3)


def micro_batch(samples: list[int], epoch: int = 0) -> PlannedMicroBatch:
    places = np.arange(len(samples), dtype=np.int64)
    return PlannedMicroBatch(step=0, epoch=epoch, positions=places, samples=np.array(samples, dtype=np.int64))


def test_a_clip_depends_on_seed_epoch_and_sample_only(source: ClipSource) -> None:
    together = training_rows(source, [micro_batch([4, 9, 2])])
    alone = training_rows(source, [micro_batch([9])])
    assert together[rows.CLIP].shape == (3, 16, 48, 48, 3)
    assert np.array_equal(together[rows.CLIP][1], alone[rows.CLIP][0])
    assert not np.array_equal(alone[rows.CLIP], training_rows(source, [micro_batch([9], epoch=1)])[rows.CLIP])
    other_seed = dataclasses.replace(source, seed=4)
    assert not np.array_equal(alone[rows.CLIP], training_rows(other_seed, [micro_batch([9])])[rows.CLIP])
    assert np.array_equal(together[rows.LABELS], source.manifest.labels[[4, 9, 2]])


def test_a_video_that_comes_again_in_an_epoch_is_drawn_anew(source: ClipSource) -> None:
    once, again = (dataclasses.replace(source, repeats=repeats) for repeats in (False, True))
    same, drawn = (training_rows(one, [micro_batch([9, 9])])[rows.CLIP] for one in (once, again))
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(training_rows(again, [micro_batch([4, 9])])[rows.CLIP][1], drawn[1]), "of its place alone"


@pytest.mark.parametrize("developed", [True, False])
def test_micro_batches_of_a_block_can_be_taken_out(source: ClipSource, developed: bool) -> None:
    """Each is what it would be alone, up to the filling behind the pixels of a smaller one."""
    source = dataclasses.replace(source, developed=developed)
    micro_batches = [micro_batch([4, 9, 2]), micro_batch([3, 3, 1], epoch=1), micro_batch([-1, -1, -1])]
    together = training_rows(source, micro_batches)
    for number, one in enumerate(micro_batches):
        taken = {column: values[3 * number : 3 * number + 3] for column, values in together.items()}
        alone = training_rows(source, [one])
        for column in taken.keys() - {rows.PIXELS}:
            assert np.array_equal(taken[column], alone[column]), column
        if not developed:
            got, expected = taken[rows.PIXELS].reshape(-1), alone[rows.PIXELS].reshape(-1)
            used = min(len(got), len(expected))
            assert np.array_equal(got[:used], expected[:used])
            assert not got[used:].any()


@pytest.mark.parametrize("developed", [True, False])
def test_several_clips_of_an_opened_video(source: ClipSource, tmp_path: Path, developed: bool) -> None:
    """The first is the clip there would have been alone, the others are other draws; each video is opened once."""
    uris = [*source.manifest.uris]
    (tmp_path / "empty.mp4").write_bytes(b"")
    uris[2] = str(tmp_path / "empty.mp4")
    several = dataclasses.replace(
        source,
        clip=dataclasses.replace(source.clip, clips_per_video=2),
        manifest=dataclasses.replace(source.manifest, uris=uris),
        developed=developed,
    )
    opened: list[int] = []

    def fetch(manifest: Manifest, sample: int) -> bytes:
        opened.append(sample)
        return reader.fetch(manifest, sample)

    made = training_rows(several, [micro_batch([4, 4, 2, 2, 9, 9])], fetch)
    assert sorted(opened) == [2, 4, 9]
    assert made[rows.REASON].tolist() == ["", "", "empty", "empty", "", ""]
    got = made[rows.CLIP] if developed else clips_of_block(made, made[rows.REASON] == "", 48, "cpu").numpy()
    if developed:
        got = got[[0, 1, 4, 5]]
    alone = training_rows(source, [micro_batch([4, 9])])[rows.CLIP]
    assert np.abs(got[[0, 2]].astype(int) - alone).max() <= (0 if developed else 1)
    assert not np.array_equal(got[0], got[1])
    again = training_rows(several, [micro_batch([9, 9])])
    second = again[rows.CLIP] if developed else clips_of_block(again, again[rows.REASON] == "", 48, "cpu").numpy()
    assert np.array_equal(second, got[2:]), "whatever else is in the micro-batch"


def test_bad_videos_are_rows_with_a_reason(source: ClipSource, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video " * 100)
    uris = [*source.manifest.uris]
    uris[1], uris[2] = str(tmp_path / "empty.mp4"), str(tmp_path / "text.mp4")
    uris[3] = str(tmp_path / "gone.mp4")
    broken = dataclasses.replace(source, manifest=dataclasses.replace(source.manifest, uris=uris))
    made = training_rows(broken, [micro_batch([0, 1, 2, 3])])
    assert made[rows.REASON].tolist() == ["", "empty", "not_video", "missing"]
    assert not made[rows.CLIP][1:].any()
    assert made[rows.CLIP][0].any()
    assert "gone.mp4" in made[rows.MESSAGE][3]


def with_videos(source: ClipSource, *files: Path) -> ClipSource:
    """The source with these in place of its first videos."""
    uris = [*map(str, files), *source.manifest.uris[len(files) :]]
    return dataclasses.replace(source, manifest=dataclasses.replace(source.manifest, uris=uris))


def test_no_file_hangs_or_ends_a_job(source: ClipSource, tmp_path: Path) -> None:
    """Each of these ended worker groups or ran for hours; in every job it is a row, and the next video is well."""
    late, shared = tmp_path / "late_keyframe.ts", tmp_path / "shared_samples.mp4"
    late.write_bytes((Path(__file__).parents[1] / "videos" / late.name).read_bytes())
    shared.write_bytes(hostile.shared_samples(samples=1100))
    bad, samples = with_videos(source, late, shared), np.array([0, 2])
    assert training_rows(bad, [micro_batch([0, 1, 2])])[rows.REASON].tolist() == ["damaged", "too_large", ""]
    handed_over = dataclasses.replace(bad, developed=False)
    assert training_rows(handed_over, [micro_batch([0, 2])])[rows.REASON].tolist() == ["damaged", ""]
    assert evaluation_rows(bad, samples)[rows.REASON].tolist() == ["damaged", ""]
    assert view_rows(bad, parse_views("2x3"), samples)[rows.REASON].tolist() == ["damaged", ""]
    windows = [list(window_rows(bad, parse_views("1x1"), 1.0, 1.0, sample)) for sample in samples]
    assert [window[-1][rows.REASON].item() for window in windows] == ["damaged", ""]
    assert whole_videos(bad.manifest, [(0, "late"), (2, "well")], source.augment)[0].text == "well"


def test_whatever_is_raised_is_the_row_of_its_video(source: ClipSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a video is read in this process, as prepared ones are."""

    def fails(data: bytes, clip: object, config: object, draw: tuple[int, int, int], developed: bool) -> list[object]:
        if draw[2] == 4:
            raise KeyError("moov")
        return as_before(data, clip, config, draw, developed)  # type: ignore[arg-type]

    as_before = decoding.training_clips
    monkeypatch.setattr(decoding, "training_clips", fails)
    monkeypatch.setattr(tasks, "decoder_of", lambda _: decoding.decoder_of(prepared=True))
    made = training_rows(source, [micro_batch([3, 4, 5])])
    assert made[rows.REASON].tolist() == ["", "decoder_error", ""]
    assert made[rows.MESSAGE][1] == "KeyError: 'moov'"

    def refused(manifest: Manifest, sample: int) -> bytes:
        raise StorageError("the store is away")

    with pytest.raises(StorageError):  # that is no fault of a video
        training_rows(source, [micro_batch([3, 4, 5])], refused)


def test_the_frames_of_a_large_video_are_not_held_together(source: ClipSource) -> None:
    """16 frames of these are 100 MB as they were decoded."""
    options = {"preset": "ultrafast", "bf": "0", "refs": "1"}
    data = videos.encode(
        frames=17, size=(1080, 1920), options=options, draw=lambda n, h, w: np.full((h, w, 3), 4 * n, np.uint8)
    )
    clip = dataclasses.replace(source.clip, frames=16, stride_frames=1)
    with closing(Sandbox(SandboxLimits(memory_gb=0.12))) as box:
        for developed in (True, False):
            made = box.call(decoding.training_clips, data, clip, source.augment, (0, 0, 0, 0), developed)
            assert len(made) == 1
        made = box.call(decoding.centre_clip, data, clip, source.augment, True)
        assert np.array_equal(made, decoding.centre_clip(data, clip, source.augment, True))


def test_empty_places_are_black_and_without_reason(source: ClipSource) -> None:
    made = evaluation_rows(source, np.array([0, -1]))
    assert made[rows.CLIP][0].any()
    assert not made[rows.CLIP][1].any()
    assert made[rows.REASON].tolist() == ["", ""]


def test_views_are_clips_before_crops(source: ClipSource) -> None:
    made = view_rows(source, parse_views("2x3"), np.array([0]))
    assert all_views(of_row(made, 0), parse_views("2x3"), source.augment).shape == (6, 16, 48, 48, 3)
    one = view_rows(source, parse_views("1x1"), np.array([0]))
    views = all_views(of_row(one, 0), parse_views("1x1"), source.augment)
    assert np.array_equal(views, evaluation_rows(source, np.array([0]))[rows.CLIP])


def test_views_of_a_block_are_those_of_each_video_alone(source: ClipSource, tmp_path: Path) -> None:
    """Whatever their sizes, and beside a bad one."""
    wide = draw_toy(ToyConfig(size_px=96), 0, 1)[:, 24:72]
    (tmp_path / "wide.mp4").write_bytes(encode_toy(wide, ToyConfig()))
    (tmp_path / "empty.mp4").write_bytes(b"")
    uris = [*source.manifest.uris]
    uris[1], uris[2] = str(tmp_path / "wide.mp4"), str(tmp_path / "empty.mp4")
    source = dataclasses.replace(source, manifest=dataclasses.replace(source.manifest, uris=uris))
    views = parse_views("2x3 random")
    together = view_rows(source, views, np.array([2, 0, 1, 3]))
    assert together[rows.REASON].tolist() == ["empty", "", "", ""]
    assert np.isnan(together[rows.SECONDS][0, 1])
    assert of_row(together, 2).frames.shape[1:3] == (48, 96)
    for row, sample in enumerate([0, 1, 3], 1):
        alone = view_rows(source, views, np.array([sample]))
        made = [all_views(of_row(*one), views, source.augment) for one in ((together, row), (alone, 0))]
        assert np.array_equal(*made)


def test_blocks_that_were_put_together_keep_their_frames(source: ClipSource) -> None:
    """As Ray Data does with windows: of one number of frames, or with a last one that has fewer."""
    views = parse_views("1x1")
    for length in (2.0, 3.9):
        windows = list(window_rows(source, views, length, length, 0))
        assert len(windows) > 1
        pixels = [window[rows.PIXELS][0] for window in windows]
        same = len({len(row) for row in pixels}) == 1
        joined = {
            name: np.concatenate([window[name] for window in windows[:2]]) for name in windows[0] if name != rows.PIXELS
        }
        joined[rows.PIXELS] = np.empty(2, dtype=object)
        joined[rows.PIXELS][:] = pixels[:2]
        whole = {**joined, rows.PIXELS: np.stack(pixels[:2])} if same else joined
        for block in (joined, whole):
            for row in (0, 1):
                assert np.array_equal(of_row(block, row).frames, of_row(windows[row], 0).frames)


def test_undeveloped_clips_become_the_same_pixels(source: ClipSource) -> None:
    undeveloped = training_rows(dataclasses.replace(source, developed=False), [micro_batch([4, 9, 2])])
    assert undeveloped[rows.PIXELS].dtype == np.uint8
    assert len(undeveloped[rows.PIXELS]) == len(undeveloped[rows.NOTES]) == 3
    flat = torch.from_numpy(undeveloped[rows.PIXELS]).view(-1)
    clips = develop(flat, from_array(undeveloped[rows.NOTES]), source.augment.crop_px).numpy()
    expected = training_rows(source, [micro_batch([4, 9, 2])])
    assert np.abs(clips.astype(int) - expected[rows.CLIP]).max() <= 1
    for column in (rows.POSITION, rows.SAMPLE, rows.LABELS, rows.REASON):
        assert np.array_equal(undeveloped[column], expected[column])


def test_undeveloped_evaluation(source: ClipSource) -> None:
    """Of videos that are stored in the size of the test, a device gets planes."""
    source = dataclasses.replace(source, augment=dataclasses.replace(source.augment, test_short_side_px=64))
    undeveloped = evaluation_rows(dataclasses.replace(source, developed=False), np.array([4, -1, 2]))
    assert [note.kind for note in from_array(undeveloped[rows.NOTES])] == [PLANES, NOTHING, PLANES]
    clips = clips_of_block(undeveloped, undeveloped[rows.SAMPLE] >= 0, source.augment.crop_px, "cpu").numpy()
    expected = evaluation_rows(source, np.array([4, -1, 2]))
    assert np.abs(clips.astype(int) - expected[rows.CLIP][[0, 2]]).max() <= 1
    for column in (rows.POSITION, rows.SAMPLE, rows.LABELS, rows.REASON):
        assert np.array_equal(undeveloped[column], expected[column])


def test_undeveloped_blocks_of_nothing_but_bad_videos(source: ClipSource, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    manifest = dataclasses.replace(source.manifest, uris=[str(tmp_path / "empty.mp4")] * len(source.manifest))
    made = training_rows(dataclasses.replace(source, developed=False, manifest=manifest), [micro_batch([0, 1])])
    assert made[rows.REASON].tolist() == ["empty", "empty"]
    assert len(made[rows.PIXELS]) == 2
    assert [note.kind for note in from_array(made[rows.NOTES])] == [NOTHING, NOTHING]
    nothing = clips_of_block(made, made[rows.REASON] == "", 48, "cpu")
    assert nothing.shape == (0, 16, 48, 48, 3)


def test_undeveloped_clips_beside_a_bad_video(source: ClipSource, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    uris = [*source.manifest.uris]
    uris[4] = str(tmp_path / "empty.mp4")
    manifest = dataclasses.replace(source.manifest, uris=uris)
    made = training_rows(dataclasses.replace(source, developed=False, manifest=manifest), [micro_batch([9, 4, 2])])
    clips = clips_of_block(made, made[rows.REASON] == "", source.augment.crop_px, "cpu").numpy()
    expected = training_rows(source, [micro_batch([9, 2])])[rows.CLIP]
    assert np.abs(clips.astype(int) - expected).max() <= 1
