"""Which network, and the settings of each kind: one value that a plan, a model file and the command line share.

`auto` goes by what there is to read: rows of a table take dense layers, images, series and sounds convolutions, texts
a recurrent network. What this file does not know: columns, and where their cells are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from narrows.errors import SettingError
from narrows.networks.conv import Conv
from narrows.networks.dense import Dense
from narrows.networks.recurrent import Recurrent
from narrows.networks.transformer import Transformer

Word = Literal["auto", "dense", "conv", "recurrent", "transformer"]
WORDS: tuple[Word, ...] = get_args(Word)
Reader = Conv | Recurrent | Transformer


@dataclass(frozen=True)
class Network:
    """A kind of network and the settings of all kinds, of which only those of the ones in use have an effect.

    Args:
        kind: `dense`, `conv`, `recurrent`, `transformer`, or `auto`.
        dense: settings of dense layers; beside other networks, of the layers that join them to the code.
        conv: of convolutions, for images, series, sounds and texts.
        recurrent: of GRUs and LSTMs, for series, sounds and texts.
        transformer: of attention, for all of these, and for the cells of a table.
        columns: what was settled for each column whose grid is read, kept with a model; it comes before `kind`.
    """

    kind: Word = "auto"
    dense: Dense = field(default_factory=Dense)
    conv: Conv = field(default_factory=Conv)
    recurrent: Recurrent = field(default_factory=Recurrent)
    transformer: Transformer = field(default_factory=Transformer)
    columns: dict[str, Reader] = field(default_factory=dict)

    @classmethod
    def of(cls, network: Any) -> Network:
        """The network that a word, the settings of one kind or of all mean; None is the default.

        Raises:
            SettingError: for anything else.
        """
        if network is None or isinstance(network, Network):
            return network or cls()
        if isinstance(network, str):
            return cls(kind=network)  # type: ignore[arg-type]  # checked by `check`
        word = word_of(network)
        if not word:
            raise SettingError(f"network={network!r}", f"one of {', '.join(WORDS)}, or settings of one of these")
        return cls(**{"kind": word, word: network})

    @property
    def members(self) -> int | None:
        """Networks side by side; None for one."""
        return self.dense.members

    def check(self) -> None:
        """Refuse settings out of range.

        Raises:
            SettingError: naming the setting.
        """
        if self.kind not in WORDS:
            raise SettingError(f"network={self.kind!r}", f"one of {', '.join(WORDS)}")
        for settings in (self.dense, self.conv, self.recurrent, self.transformer, *self.columns.values()):
            settings.check()

    def named(self, word: str) -> Reader:
        """The settings of a kind that reads grids."""
        readers: dict[str, Reader] = {
            "conv": self.conv,
            "recurrent": self.recurrent,
            "transformer": self.transformer,
        }
        return readers[word]


def word_of(settings: Any) -> str:
    """The word for the kind of network whose settings these are; empty for anything else."""
    kinds = {Dense: "dense", Conv: "conv", Recurrent: "recurrent", Transformer: "transformer"}
    return kinds.get(type(settings), "")
