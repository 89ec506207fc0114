"""The part above the stem while it learns: from stem outputs to logits, texts included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grmp_edge.default_bundle import EMBEDDED
from grmp_edge.train.network.backbone import BackboneConfig, load_backbone
from grmp_edge.train.network.embedded import load_prompts, save_embedded
from grmp_edge.train.network.hybrid import SIDE
from grmp_edge.train.network.model import GrmpIqa
from grmp_edge.train.network.stem import CHANNELS
from grmp_edge.train.network.words import cause_prompts
from grmp_edge.train.recipe.store import Views
from grmp_edge.train.session.checkpoint import load_parameters
from grmp_edge.views import Aggregate

__all__ = ["COMPONENTS", "Upper", "places_to_show", "settings_of"]

COMPONENTS = 192  # principal components of the statistics that hold what few labels can learn (experiment 33)
_FIRST_PLACE = 1 + len(CHANNELS)


class Upper(nn.Module):
    """A model above its stem, with a read-out of statistics for training only."""

    components: Tensor  # (COMPONENTS, S), of standardised statistics, each of unit variance
    power: Tensor  # (COMPONENTS,), how much each counts
    cause_tokens: Tensor  # ids (1 + causes, L) of the sentences

    def __init__(self, model: GrmpIqa) -> None:
        super().__init__()
        self.model = model
        visual = self.visual
        self.read_out = nn.Linear(visual.output_dim, COMPONENTS)
        self.register_buffer("components", torch.zeros(COMPONENTS, len(model.head_row)), persistent=False)
        self.register_buffer("power", torch.ones(COMPONENTS), persistent=False)
        tokens = model.backbone.tokenize(cause_prompts())
        self.register_buffer("cause_tokens", tokens[:, : int(tokens.argmax(dim=-1).max()) + 1])
        for name, parameter in model.named_parameters():
            frozen = name.startswith("clip.visual.stem.") or name in (
                "clip.token_embedding.weight",
                "clip.statistics_row",
            )
            parameter.requires_grad_(not frozen)

    @classmethod
    def load(cls, weights: Path | None) -> Upper:
        """From a file of ``save_embedded``; None: the weights that ship.

        Raises:
            ModelError: it cannot be loaded.
        """
        pretrained = "" if weights is None else str(weights)
        model = GrmpIqa(load_backbone(BackboneConfig(EMBEDDED, pretrained)))
        load_parameters(model, load_prompts(weights), weights or Path(EMBEDDED))
        return cls(model)

    def save(self, path: Path, aggregate: Aggregate, metadata: dict[str, str]) -> str:
        """Write the weights; returns their SHA-256."""
        clip: Any = self.model.clip
        clip.aggregate = aggregate
        return save_embedded(clip, dict(self.model.prompt_parameters()), path, metadata=metadata)

    @property
    def visual(self) -> Any:
        """The image tower."""
        return self.model.image.visual

    def restart(self) -> None:
        """Forget the image side; the texts keep what they mean."""
        fresh = load_backbone(BackboneConfig(EMBEDDED, "random", random_seed=0)).clip
        state = fresh.state_dict()
        own = self.model.clip.state_dict()
        kept = {n for n in own if not n.startswith("visual.") or n.startswith("visual.stem.")}
        self.model.clip.load_state_dict({n: own[n] if n in kept else state[n] for n in own})
        with torch.no_grad():
            for prompts in (self.model.prompt_embeddings, self.model.deep_prompt_embeddings):
                prompts.normal_(std=0.1)
            self.visual_row.zero_()
            self.model.prompt_proj.reset_parameters()
            self.model.prompt_norm.reset_parameters()

    def standardised(self, stats: Tensor) -> Tensor:
        """Statistics (n, S) as the tokens read them, float32."""
        standardised: Tensor = self.visual.embedding.standardised(stats.float())
        return standardised

    def forward(
        self, fine: Tensor, grid: Tensor, stats: Tensor, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stem outputs to unit features (B, E) and logits (B, 1 + causes), the score's first.

        ``places``: indices of the grid's places that flow; None: all.
        """
        model = self.model
        tokens = self.visual.embedding(fine, grid, stats)
        if places is not None:
            tokens = torch.cat([tokens[:, :_FIRST_PLACE], tokens[:, _FIRST_PLACE + places]], dim=1)
        tokens = model.image_tokens(self.visual.ln_pre(tokens), 0, len(model.image.blocks))
        feature = model.image_head(tokens)
        high, low = model.logits(feature, model.quality_features()).unbind(dim=-1)
        quality = high - low + self.standardised(stats) @ self.visual_row
        return feature, torch.cat([quality[:, None], self._causes(feature)], dim=1)

    @property
    def visual_row(self) -> Tensor:
        """The straight row from standardised statistics to the score's logit, (S,)."""
        clip: Any = self.model.clip
        row: Tensor = clip.statistics_row
        return row

    def _causes(self, feature: Tensor) -> Tensor:
        clip: Any = self.model.clip
        text = self.model.text
        x = text.run(text.add_positions(text.embed(self.cause_tokens)))
        healthy, *others = text.project(x, self.cause_tokens.argmax(dim=-1))
        rows = clip.cause_scale.exp()[:, None] * (torch.stack(others) - healthy)
        causes: Tensor = feature @ rows.T + clip.cause_bias
        return causes

    def explained(self, feature: Tensor, stats: Tensor) -> Tensor:
        """Mean squared error of the statistics' components read off the feature, weighted, a scalar."""
        aim = self.standardised(stats) @ self.components.T
        error = (self.read_out(feature * self.visual.output_dim**0.5) - aim).square().mean(dim=0)
        weighted: Tensor = (error * self.power).mean()
        return weighted

    @torch.no_grad()
    def standardise(self, views: Sequence[Views], start: bool) -> None:
        """Set the constants of standardisation and the components from training views.

        Args:
            views: what to take them from.
            start: also start the class token at the principal components, for weights from nothing.
        """
        embedding = self.visual.embedding
        stats = torch.cat([each.stats for each in views]).float()
        spread = stats.std(dim=0)
        if start:
            embedding.stats_mean.copy_(stats.mean(dim=0))
            embedding.stats_std.copy_(spread + 0.02 * spread.mean())
            for name in ("fine", "grid"):
                some = torch.cat([getattr(v, name)[:: max(1, len(v) // 300)] for v in views]).float()
                getattr(embedding, f"{name}_mean").copy_(some.mean(dim=(0, 2, 3)))
                getattr(embedding, f"{name}_std").copy_(some.std(dim=(0, 2, 3)) + 1e-3)
        order = torch.randperm(len(stats), generator=torch.Generator().manual_seed(0))
        some = self.standardised(stats[order[:4000]])
        _, size, right = torch.svd_lowrank(some, q=COMPONENTS + 8, niter=2)
        deviation, directions = size[:COMPONENTS] / len(some) ** 0.5, right.T[:COMPONENTS]
        count = len(directions)  # fewer than asked for where there are fewer views
        self.components.zero_()[:count] = directions / deviation[:, None]
        self.power.zero_()[:count] = (deviation / deviation.mean()) ** 0.7  # what is large counts more
        if start:
            # A power below one lifts small components a little: they hold what noise and compression do.
            embedding.to_class.weight[:count] = directions * deviation[:, None] ** -0.4 * 0.35

    @torch.no_grad()
    def fit_read_out(self, views: Views, count: int = 1500) -> float:
        """Start the read-out where least squares puts it; returns the share of variance that it leaves."""
        chosen = np.random.default_rng(0).permutation(len(views))[:count]
        parts = np.array_split(chosen, max(1, len(chosen) // 128))
        feature = torch.cat([self(*views.take(part))[0] for part in parts])
        scaled = feature * self.visual.output_dim**0.5
        x = torch.cat([scaled, torch.ones(len(feature), 1)], dim=1)
        aim = self.standardised(views.stats[torch.from_numpy(chosen)]) @ self.components.T
        weights = torch.linalg.solve(x.T @ x + 0.02 * len(x) * torch.eye(x.shape[1]), x.T @ aim)
        self.read_out.weight.copy_(weights[:-1].T)
        self.read_out.bias.copy_(weights[-1])
        return float((x @ weights - aim).square().mean())

    def groups(self, rate: float, decay: float) -> list[dict[str, Any]]:
        """AdamW's groups: vectors do not decay, the texts learn at a third, the read-out at three times."""
        grouped: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            text = not any(part in name for part in ("visual", "prompt_", "read_out", "cause_", "scale"))
            own = rate * (0.3 if text else 3.0 if name.startswith("read_out") else 1.0)
            grouped.setdefault((own, decay if parameter.ndim > 1 else 0.0), []).append(parameter)
        return [
            {"params": parameters, "lr": own, "weight_decay": own_decay, "top": own}
            for (own, own_decay), parameters in grouped.items()
        ]


def places_to_show(count: int, generator: torch.Generator) -> Tensor:
    """The same ``count`` random places for a whole batch, ascending."""
    return torch.randperm(SIDE**2, generator=generator)[:count].sort().values


def settings_of(config: Any) -> dict[str, str]:
    """A dataclass of settings as strings for a file's header."""
    return {name: str(value) for name, value in asdict(config).items()}
