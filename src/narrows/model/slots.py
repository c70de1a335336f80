"""What a recipe chooses: the parts of an autoencoder, left open until schema, code size and network are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from narrows.model.corruptions import Corruption
from narrows.model.latents import Latent
from narrows.model.likelihoods import Words
from narrows.model.objectives import Objective
from narrows.model.penalties import Penalty, Site


@dataclass(frozen=True)
class Slots:
    """What a recipe chooses.

    Args:
        latent: size of the code -> the latent.
        likelihood: family of the number cells, one word or a word by column (see `narrows.model.likelihoods`).
        link: activation of the outputs of squared-error cells.
        augmentations: applied in order, in training and validation, to what the model is to reconstruct.
        corruptions: applied in order, in training and validation, to what the encoder sees.
        objective: weights of the latent's terms and of penalties, samples, and the bound.
        penalties: made for the place where they will stand.
        pieces: that the encoder reads each number in, beside as it is (see `narrows.model.embed.Pieces`); 0 for none.
        linear: whether encoder and decoder are one linear map each, whatever network was asked for.
    """

    latent: Callable[[int], Latent]
    likelihood: Words = "mse"
    link: str = "auto"
    augmentations: tuple[Corruption, ...] = ()
    corruptions: tuple[Corruption, ...] = ()
    objective: Objective = field(default_factory=Objective)
    penalties: tuple[Callable[[Site], Penalty], ...] = ()
    pieces: int = 0
    linear: bool = False

    def can_copy(self, size: int) -> bool:
        """Whether a code as wide as the data could hold it all: neither latent nor corruption stands in the way.

        Args:
            size: of the code.

        Raises:
            SettingError: where the latent refuses it.
        """
        with torch.device("meta"):  # nothing is allocated or drawn
            return not (self.corruptions or self.penalties or self.latent(size).limits)
