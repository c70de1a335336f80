"""A recipe, a schema and a network -> the module: which columns are read as grids, and everything fitted together.

no grid            embed -> dense encoder -> latent -> dense decoder -> likelihood
grids              each through its own network, joined with the rest by dense layers (see `networks.fused`)
one grid, spatial  its network alone: the code keeps the positions of the last map
cells of a table   a transformer over one position a cell
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from torch import nn

from narrows.errors import SettingError
from narrows.model.autoencoder import AutoencoderModule
from narrows.model.embed import CellEmbed, Embed, GridEmbed
from narrows.model.latents import Deterministic, Latent
from narrows.model.likelihoods import Likelihood
from narrows.model.penalties import Site
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network, Reader, word_of
from narrows.networks.conv import Conv
from narrows.networks.dense import Dense
from narrows.networks.fused import Celled, CellHeads, Fused, Parted, PerPosition
from narrows.networks.grids import Grid
from narrows.schema import Column, Schema

MOST_CELLS = 2048  # of a row that attention relates to each other: its work grows with their square
Ends = tuple[nn.Module, nn.Module, nn.Module, Network]  # embed, encoder, decoder, and the network as it was settled


@dataclass(frozen=True)
class Reading:
    """How cells are read, whatever the network.

    Args:
        masking: whether the corruption hides cells.
        pieces: that numbers are read in (see `narrows.model.embed.Pieces`); 0 for none.
    """

    masking: bool = False
    pieces: int = 0


def build(
    recipe: Recipe,
    schema: Schema,
    latent: int,
    network: Network,
    modules: Mapping[str, nn.Module] | None = None,
) -> AutoencoderModule:
    """The module alone that `assemble` makes."""
    return assemble(recipe, schema, latent, network, modules)[0]


def assemble(
    recipe: Recipe,
    schema: Schema,
    latent: int,
    network: Network,
    modules: Mapping[str, nn.Module] | None = None,
) -> tuple[AutoencoderModule, Network]:
    """The module that a recipe makes of a schema, with fresh random weights from torch's global generator.

    Beside it the network with everything settled that was left to defaults, for the model file: defaults may get better
    later, and the file must still load.

    Args:
        recipe: fills the slots.
        schema: of the prepared data.
        latent: numbers in the code of one row.
        network: encoder and decoder.
        modules: `encoder` (B, inputs) -> (B, features) and `decoder` (..., size) -> (..., outputs) of the user's own,
            in place of the network.

    Raises:
        SettingError: for settings that do not fit together.
    """
    slots = recipe.slots()
    if slots.linear:
        network = _linear(recipe, network)
    for part in (*slots.augmentations, *slots.corruptions):
        part.suit(schema)
    reading = Reading(any(part.hides for part in slots.corruptions), slots.pieces)
    code = slots.latent(latent)
    code.suit(None if modules else network.members)
    likelihood = Likelihood(schema, slots.likelihood, slots.link, None if modules else network.members)
    if modules:
        embed, encoder, decoder = (
            Embed(schema, reading.masking, pieces=reading.pieces),
            modules["encoder"],
            modules["decoder"],
        )
    else:
        embed, encoder, decoder, network = _ends(schema, network, reading, code, likelihood)  # type: ignore[assignment]
    critic = partial(_critic, schema, network, likelihood)
    site = Site(schema, code, encoder, None if modules else network.members, critic, embed)
    penalties = [penalty(site) for penalty in slots.penalties]
    changes = nn.Sequential(*slots.augmentations), nn.Sequential(*slots.corruptions)
    module = AutoencoderModule(*changes, embed, encoder, code, decoder, likelihood, slots.objective, penalties)
    return module, network


def _linear(recipe: Recipe, network: Network) -> Network:
    """The network without hidden layers."""
    if network.kind not in ("auto", "dense"):
        raise SettingError(f"network={network.kind!r} with the recipe {recipe.name}", "dense")
    if network.dense.hidden or network.dense.decoder:
        asked = f"hidden={network.dense.hidden}, decoder={network.dense.decoder}"
        raise SettingError(f"{asked} with the recipe {recipe.name}", "none")
    return replace(network, kind="dense", dense=replace(network.dense, hidden=(), decoder=()))


def choose_networks(schema: Schema, network: Network) -> dict[str, Reader]:
    """The columns whose grids a network reads: name -> its settings.

    Raises:
        SettingError: where the network asked for has no column to read.
    """
    if network.columns:
        return {column.name: network.columns[column.name] for column in schema if column.name in network.columns}
    columns = [column for column in schema if column.grid and column.cells]
    if network.kind == "auto":
        chosen = {column.name: _usual(column) for column in columns}
    else:
        chosen = {column.name: network.kind for column in columns if _reads(network.kind, column)}
    if network.kind in ("conv", "recurrent") and not chosen:
        what = {"conv": "image, series, sound or text", "recurrent": "series, sound or text"}[network.kind]
        hint = "--network dense, or the column's kind: --column.NAME series"
        raise SettingError(f"network={network.kind!r} for rows without any {what}", "auto or dense", hint)
    return {name: network.named(word) for name, word in chosen.items() if word != "dense"}


def positions(column: Column) -> tuple[int, ...]:
    """How the positions of a column's grid are arranged: (height, width), (steps,) or (tokens,)."""
    return column.grid if column.categorical else column.grid[:-1]


def _usual(column: Column) -> str:
    """What reached the lowest errors: on images of 8 x 8 to 32 x 32 dense layers were behind by a tenth to a half."""
    return "recurrent" if column.categorical else "conv"


def _reads(kind: str, column: Column) -> bool:
    return kind != "dense" and (kind != "recurrent" or len(positions(column)) == 1)


def _ends(schema: Schema, network: Network, reading: Reading, code: Latent, likelihood: Likelihood) -> Ends:
    """Embedding, encoder and decoder."""
    chosen = choose_networks(schema, network)
    if network.members and (chosen or network.kind == "transformer"):
        kinds = ", ".join(sorted({word_of(settings) for settings in chosen.values()})) or network.kind
        raise SettingError(f"members={network.members} with a {kinds} network", "dense networks, or one member")
    if chosen:
        return _over_grids(schema, network, chosen, reading, code, likelihood)
    if network.kind == "transformer":
        return _over_cells(schema, network, reading, code, likelihood)
    embed = Embed(schema, reading.masking, pieces=reading.pieces)
    dense = network.dense.settled(embed.width, code.features, code.size, likelihood.width)
    down, up = dense.build(embed.width, code.features, code.size, likelihood.width)
    return embed, down, up, replace(network, kind="dense", dense=dense)


def _critic(schema: Schema, network: Network, likelihood: Likelihood, features: int) -> nn.Module:
    """A network over rows like the encoder: Batch -> ([E,] B, features); its features have no positions."""
    columns = {name: _flat(settings) for name, settings in network.columns.items()}
    network = replace(network, conv=replace(network.conv, spatial=False), columns=columns)
    embed, encoder, *_ = _ends(schema, network, Reading(), Deterministic(features), likelihood)
    return nn.Sequential(embed, encoder)


def _flat(settings: Reader) -> Reader:
    return replace(settings, spatial=False) if isinstance(settings, Conv) else settings


def _over_grids(
    schema: Schema,
    network: Network,
    chosen: dict[str, Reader],
    reading: Reading,
    code: Latent,
    likelihood: Likelihood,
) -> Ends:
    """A network for each grid, and dense layers that join them with the rest of the row."""
    embed = GridEmbed(schema, list(chosen), reading.masking, reading.pieces)
    encoders, decoders, spans, columns = [], [], [], {}
    for index, (name, settings) in enumerate(chosen.items()):
        column, start = schema[name], likelihood.spans[name].start
        outputs = column.outputs if column.categorical else column.grid[-1]
        grid = Grid(positions(column), embed.channels(index), outputs)
        columns[name] = settings.settled(grid, told=column.categorical)
        encoder, decoder = columns[name].pair(grid)
        encoders.append(encoder)
        decoders.append(decoder)
        spans.append(slice(start, start + grid.count * outputs))
    rest = likelihood.width - sum(span.stop - span.start for span in spans)
    inside = embed.rest.width + sum(encoder.width for encoder in encoders)
    outside = rest + sum(decoder.width for decoder in decoders)
    dense = _joining(network.dense, bool(rest)).settled(inside, code.features, code.size, outside)
    if places := _places(schema, columns, dense, rest + embed.rest.width):
        down, up = _by_position(places, code, inside, outside)
    else:
        down, up = dense.build(inside, code.features, code.size, outside)
    settled = replace(network, dense=dense, columns=columns)
    return embed, Fused(encoders, down), Parted(up, decoders, spans, likelihood.width), settled


def _places(schema: Schema, columns: Mapping[str, Reader], dense: Dense, rest: int) -> tuple[int, ...]:
    """How the positions of a spatial code are arranged; empty for a code of another kind.

    Args:
        schema: of the prepared data.
        columns: name -> settings of the network that reads its grid.
        dense: layers between grids and code.
        rest: numbers that enter and leave beside the grids.

    Raises:
        SettingError: where the row is more than one grid, or dense layers would stand in between.
    """
    spatial = {name: settings for name, settings in columns.items() if isinstance(settings, Conv) and settings.spatial}
    if not spatial:
        return ()
    name, conv = next(iter(spatial.items()))
    if len(columns) > 1 or rest:
        others = len(schema) - 1
        beside = f"and {others} more" if others else "and cells that lie in no grid"
        got = f"spatial=True for rows of column {name!r} {beside}"
        raise SettingError(got, "rows that are one image, series, sound or text", "spatial=False")
    if dense.hidden or dense.decoder:
        raise SettingError(f"hidden={dense.hidden} with spatial=True", "no dense layers: () or None")
    return conv.positions(Grid(positions(schema[name]), 1, 1))


def _by_position(places: tuple[int, ...], code: Latent, inside: int, outside: int) -> tuple[nn.Module, nn.Module]:
    """Maps between the vectors of a grid's network and a code that keeps its positions.

    Raises:
        SettingError: where the positions do not share the code's numbers evenly.
    """
    count = prod(places)
    if code.size % count:
        below, said = code.size // count * count, " x ".join(map(str, places))
        nearest = f"{below:,} or {below + count:,}" if below else f"{count:,}"
        raise SettingError(f"latent={code.size:,} with a spatial code of {said} positions", f"a multiple: {nearest}")
    if code.features % code.size:
        got = f"spatial=True with a code that is made of {code.features} features for {code.size} numbers"
        raise SettingError(got, "as many features for each number", "spatial=False")
    each = code.size // count
    down = PerPosition(count, inside // count, each, code.features // code.size)
    return down, PerPosition(count, each, outside // count)


def _joining(dense: Dense, mixed: bool) -> Dense:
    """The dense layers between grids and code: none for a lone grid, whose network does the work."""
    return dense if mixed or dense.hidden is not None else replace(dense, hidden=(), decoder=dense.decoder or ())


def _over_cells(schema: Schema, network: Network, reading: Reading, code: Latent, likelihood: Likelihood) -> Ends:
    """A transformer over the cells of a table."""
    bags = [column.name for column in schema if column.kind == "bag"]
    if bags or schema.cells > MOST_CELLS:
        got = f"network='transformer' for rows of {schema.cells:,} cells" + (" with bags" if bags else "")
        raise SettingError(got, f"at most {MOST_CELLS:,} cells, none of them a bag's", "network='dense'")
    if likelihood.count != schema.numbers:
        got = "network='transformer' over the cells of a table with the likelihood bins"
        raise SettingError(got, "the likelihood auto or mse", "network='dense'")
    if reading.pieces:
        raise SettingError("network='transformer' over cells read in pieces", "pieces=0", "network='dense'")
    if network.transformer.autoregressive:
        raise SettingError("autoregressive=True over the cells of a table, which have no order", "a series or a text")
    width = network.transformer.width
    settings = replace(network.transformer, patch=network.transformer.patch or 1, autoregressive=False)
    encoder, decoder = settings.pair(Grid((schema.cells,), width, width))
    dense = _joining(network.dense, mixed=False).settled(encoder.width, code.features, code.size, decoder.width)
    down, up = dense.build(encoder.width, code.features, code.size, decoder.width)
    numbers = [cell for name in likelihood.spans if name in schema.names for cell in _number_cells(schema, name)]
    outputs = [column.outputs for column in schema if column.categorical for _ in range(column.cells)]
    heads = CellHeads(numbers, outputs, width)
    settled = replace(network, dense=dense, transformer=settings)
    return CellEmbed(schema, width, reading.masking), Fused([encoder], down), Celled(up, decoder, heads), settled


def _number_cells(schema: Schema, name: str) -> range:
    span = schema.spans[name]
    return range(span.start, span.stop if not schema[name].categorical else span.start)
