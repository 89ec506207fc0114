"""What never changes in fine-tuning, computed once: the frozen blocks' tokens and the teacher's word."""

from __future__ import annotations

import copy
from collections import OrderedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from grmp_edge.train.model import GrmpIqa
from grmp_edge.train.towers import ImageTower

__all__ = ["FrozenCache", "Teacher"]

UInt8Array = npt.NDArray[np.uint8]


class Teacher:
    """The plain CLIP of the start, without any prompts, frozen: what the picture shows."""

    def __init__(self, model: GrmpIqa) -> None:
        clip = nn.Module()
        clip.visual = copy.deepcopy(model.image.visual)  # the student's last blocks will move away
        self.tower = ImageTower(clip, model.backbone.name)
        with torch.no_grad():
            self.scenes = model.scene_features()

    @torch.no_grad()
    def logits(self, model: GrmpIqa, pixels: Tensor) -> Tensor:
        """Scaled cosines with the nine scenes, (B, 9)."""
        return model.logits(self.tower.plain(pixels), self.scenes)


class FrozenCache:
    """What never changes in fine-tuning, by picture and view: frozen blocks' tokens, the teacher's logits.

    A view is a crop offset and a flip. Least recently used views leave when the budget is full.
    """

    def __init__(self, model: GrmpIqa, teacher: Teacher | None, images: UInt8Array, budget: int) -> None:
        self.model, self.teacher, self.images, self.budget = model, teacher, images, budget
        self.kept: OrderedDict[tuple[int, int, bool], tuple[Tensor, Tensor | None]] = OrderedDict()
        self.used = 0
        with torch.no_grad():
            self.extras = [model.prompt_keys_values(i, 1) for i in range(model.first_trained_image_block)]

    def get(self, indices: list[int], offset: int, flip: bool) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, L, W) after the frozen blocks and the teacher's logits (B, 9), if there is a teacher."""
        missing = [index for index in indices if (index, offset, flip) not in self.kept]
        fresh = self._compute(missing, offset, flip) if missing else {}
        found = []
        for index in indices:
            key = (index, offset, flip)
            if key in self.kept:
                self.kept.move_to_end(key)
                found.append(self.kept[key])
            else:
                found.append(fresh[index])
        for index in missing:
            self._keep((index, offset, flip), fresh[index])
        tokens = torch.stack([tokens for tokens, _ in found])
        logits = [logits for _, logits in found if logits is not None]
        return tokens, torch.stack(logits) if logits else None

    def _compute(
        self, indices: list[int], offset: int, flip: bool
    ) -> dict[int, tuple[Tensor, Tensor | None]]:
        # A picture at a time: its tokens must not depend, not even by rounding, on which others are
        # missing, or a resumed run with its empty cache would part from one that was never stopped.
        return {index: self._compute_one(self.images[index], offset, flip) for index in indices}

    @torch.no_grad()
    def _compute_one(self, image: UInt8Array, offset: int, flip: bool) -> tuple[Tensor, Tensor | None]:
        model, size = self.model, self.model.image.size
        cut = image[None, offset : offset + size, offset : offset + size]
        if flip:
            cut = cut[:, :, ::-1]
        pixels = model.pixels(torch.from_numpy(np.ascontiguousarray(cut)).to(model.ctx.device))
        tokens = model.image_tokens(model.image.embed(pixels), 0, len(self.extras), self.extras)
        return tokens[0], self.teacher.logits(model, pixels)[0] if self.teacher else None

    def _keep(self, key: tuple[int, int, bool], value: tuple[Tensor, Tensor | None]) -> None:
        size = value[0].element_size() * value[0].nelement()
        while self.kept and self.used + size > self.budget:
            _, (old, _) = self.kept.popitem(last=False)
            self.used -= old.element_size() * old.nelement()
        if self.used + size <= self.budget:
            self.kept[key] = value
            self.used += size
