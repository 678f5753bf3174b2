"""Views: the clips and crops by which a video is tested. Plain data; runs anywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tpn_ray.clips.augment import CENTRE_CROP, THREE_CROPS, AugmentConfig, CropName
from tpn_ray.errors import ConfigError


@dataclass(frozen=True)
class Views:
    """`clips` clips spread over the video, each in every one of `crops`."""

    clips: int
    crops: tuple[CropName, ...]

    @property
    def count(self) -> int:
        return self.clips * len(self.crops)

    def side_px(self, augment: AugmentConfig) -> int:
        """Height and width of a view: three crops take the whole short side, as published."""
        return augment.crop_px if self.crops == CENTRE_CROP else augment.test_short_side_px


def parse_views(text: str) -> Views:
    """ "1x1": the middle clip in its centre crop; "10x3": ten clips, each in three crops (the published test)."""
    match = re.fullmatch(r"(\d+)x([13])", text)
    if not match or int(match[1]) < 1:
        raise ConfigError(f"views {text!r} are not known; write CLIPSxCROPS with 1 or 3 crops, such as 1x1 or 10x3")
    return Views(clips=int(match[1]), crops=CENTRE_CROP if match[2] == "1" else THREE_CROPS)
