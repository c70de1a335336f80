"""One row's value of a wide column as a piece of the page: lines, texts with marks, spectra with sound, top items.

Cards stand beside each other in a sample of rows, and below the worst ones. Sounds are most of a page's bytes: so many
are played as fit a budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, prod

import numpy as np
from markupsafe import Markup

from narrows.prepare.bags import Items
from narrows.prepare.series import Series
from narrows.report.cells import Drawing, Floats, View, drawing
from narrows.report.charts import overlay
from narrows.report.sounds import SECONDS, beginning, decibels, picture, playable
from narrows.report.texts import differing
from narrows.schema import Column
from narrows.tasks.figures import figure
from narrows.tasks.shares import as_shares

CHANNELS = 4  # of a series, a chart each
ITEMS = 10  # of a bag
PLAYED = 900_000  # bytes of sound in one list of cards
SHOWN = {"lines": 6, "sound": 6, "bag": 6, "text": 100}
ASSUMED = 8_000  # samples per second of a sound that does not say it
STYLES = (("original", "original"), ("PCA", "pca"), ("model", "model"))


@dataclass(frozen=True)
class CardList:
    """Cards of one column for the sampled rows."""

    name: str
    way: Drawing
    cards: list[Markup]


class Cards:
    """Cards of some rows.

    Args:
        view: the rows, restored.
        titled: whether a card says which row it is of.
    """

    def __init__(self, view: View, titled: bool = True) -> None:
        self.view, self.schema, self.rows, self.titled = view, view.schema, view.rows, titled

    def of(self, column: Column) -> list[Markup]:
        """A card for each row, as many as suit the kind."""
        return [self.card(column, row) for row in range(min(SHOWN[drawing(column)], len(self.rows.index)))]

    def card(self, column: Column, row: int) -> Markup:
        """One row's value of a column that is not drawn as an image or printed in a table."""
        draw = {"lines": self._lines, "text": self._text, "sound": self._sound, "bag": self._bag}
        return draw[drawing(column)](column, row)

    def _title(self, row: int, *more: str) -> str:
        return ", ".join([f"row {int(self.rows.index[row]):,}"] * self.titled + list(more))

    def _lines(self, column: Column, row: int) -> Markup:
        """A chart for each channel: the original under PCA and the model, nothing where nothing was."""
        lines = {style: self.view.steps(column, row, style) for _, style in STYLES}
        lines["original"] = np.where(self._there(column, row, len(lines["original"])), lines["original"], np.nan)
        layout = self.view.preparer.layouts.get(column.name)
        names = layout.names if isinstance(layout, Series) else ()
        charts = []
        for channel in range(min(CHANNELS, lines["original"].shape[1])):
            name = names[channel] if len(names) > channel else f"channel {channel + 1}"
            title = f"row {int(self.rows.index[row])}, {name}"
            drawn = overlay([(style, values[:, channel]) for style, values in lines.items()], title)
            charts.append(Markup("<figcaption>{}</figcaption>").format(name) if len(names) > 1 else Markup(""))
            charts.append(drawn)
        return Markup("<figure>{}</figure>").format(Markup("").join(charts))

    def _there(self, column: Column, row: int, steps: int) -> Floats:
        """(steps, channels) which values of the original were there."""
        span = self.schema.spans[column.name]
        shape = column.grid or (column.cells, 1)
        return np.asarray(self.view.mask[row, span][: prod(shape)].reshape(shape)[:steps])

    def _text(self, column: Column, row: int) -> Markup:
        span = self.schema.spans[column.name]
        seen = int(self.view.mask[row, span].sum())
        if not seen:
            return Markup('<div class="diff"><span class="soft">{}</span></div>').format(self._title(row, "missing"))
        texts = [self.view.text(column, row, which) for which in ("original", "model")]
        each = float(self.rows.costs[row, span].sum()) / log(2) / seen
        ours, theirs = differing(*texts)
        frame = '<div class="diff"><span class="soft">{}</span><div>{}</div><div class="model">{}</div></div>'
        return Markup(frame).format(self._title(row, f"{figure(each)} bits a token"), ours, theirs)

    def _sound(self, column: Column, row: int) -> Markup:
        """Spectra of the three, those of original and model with a player, on one scale of loudness."""
        rate = column.rate or ASSUMED
        full = self.view.full_scale(column)
        waves = {style: beginning(self.view.steps(column, row, style) / full, rate) for _, style in STYLES}
        spectra = {style: decibels(wave, rate) for style, wave in waves.items()}
        loudest = float(spectra["original"].max())
        played = bool(column.rate) and (row + 1) * 2 * int(SECONDS * rate) * 2 * 4 / 3 <= PLAYED
        parts = []
        for word, style in (STYLES[0], STYLES[2], STYLES[1]):
            caption = self._title(row, word) if style == "original" else word
            image = Markup('<figcaption>{}</figcaption><img class="spectrum" alt="{} of row {}" src="{}">').format(
                caption, word, int(self.rows.index[row]), picture(spectra[style], loudest)
            )
            player = Markup('<audio controls preload="none" src="{}"></audio>')
            parts.append(image + (player.format(playable(waves[style], rate)) if played and style != "pca" else ""))
        return Markup('<figure class="sound">{}</figure>').format(Markup("").join(parts))

    def _bag(self, column: Column, row: int) -> Markup:
        """The items with the largest counts, and those that the model expects most of, given the row's total."""
        span = self.schema.spans[column.name]
        counts = self.rows.truth.numbers[row, span]
        expected = as_shares(self.rows.model[0][row : row + 1, span])[0] * counts.sum()
        tops = [values.topk(min(ITEMS, len(values))) for values in (counts, expected)]
        layout = self.view.preparer.layouts.get(column.name)
        names = layout.names if isinstance(layout, Items) else ()
        columns = []
        for word, top in zip(("original", "model"), tops, strict=True):
            lines = [
                Markup('<tr{}><td class="name">{}</td><td class="num">{}</td></tr>').format(
                    Markup("") if counts[cell] > 0 else Markup(' class="soft"'),
                    _short(str(names[cell]) if names else str(cell)),
                    _amount(value),
                )
                for value, cell in zip(top.values.tolist(), top.indices.tolist(), strict=True)
                if value > 0
            ]
            head = Markup('<tr><th scope="col">{}</th><th></th></tr>').format(word)
            columns.append(Markup("<table>{}{}</table>").format(head, Markup("").join(lines)))
        title = self._title(row, f"{_amount(float(counts.sum()))} in all")
        frame = '<figure><figcaption>{}</figcaption><div class="bag">{}</div></figure>'
        return Markup(frame).format(title, Markup("").join(columns))


def card_lists(view: View) -> list[CardList]:
    """Every column that is drawn as cards."""
    cards, columns = Cards(view), [column for column in view.schema if drawing(column) not in ("picture", "cell")]
    return [CardList(column.name, drawing(column), cards.of(column)) for column in columns]


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}\N{HORIZONTAL ELLIPSIS}"


def _amount(value: float) -> str:
    """A count, as a whole number where it is one."""
    return f"{value:,.0f}" if value == round(value) else "< 0.01" if value < 0.01 else f"{value:,.2f}"
