"""A recipe, a schema and a network -> the module: which columns are read as grids, and everything fitted together.

no grid            embed -> dense encoder -> latent -> dense decoder -> likelihood
grids              each through its own network, joined with the rest by dense layers (see `networks.fused`)
cells of a table   a transformer over one position a cell
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from narrows.errors import SettingError
from narrows.model.autoencoder import AutoencoderModule
from narrows.model.corruptions import GaussianNoise, Masking
from narrows.model.embed import CellEmbed, Embed, GridEmbed
from narrows.model.latents import Latent
from narrows.model.likelihoods import Likelihood
from narrows.model.recipes import Recipe
from narrows.networks.choice import Network
from narrows.networks.dense import Dense
from narrows.networks.fused import Celled, CellHeads, Fused, Parted
from narrows.networks.grids import Grid, GridNetwork
from narrows.networks.recurrent import Recurrent
from narrows.networks.transformer import Transformer
from narrows.schema import Column, Schema

MOST_CELLS = 2048  # of a row that attention relates to each other: its work grows with their square
Ends = tuple[nn.Module, nn.Module, nn.Module]  # embed, encoder, decoder


def build(
    recipe: Recipe,
    schema: Schema,
    latent: int,
    network: Network,
    modules: Mapping[str, nn.Module] | None = None,
) -> AutoencoderModule:
    """The module that a recipe makes of a schema, with fresh random weights from torch's global generator.

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
    for part in slots.corruptions:
        if isinstance(part, GaussianNoise):
            part.suit(schema)
    masking = any(isinstance(part, Masking) for part in slots.corruptions)
    code = slots.latent(latent)
    likelihood = Likelihood(schema, slots.likelihood, slots.link, None if modules else network.members)
    if modules:
        embed, encoder, decoder = Embed(schema, masking), modules["encoder"], modules["decoder"]
    else:
        embed, encoder, decoder = _ends(schema, network, masking, code, likelihood)  # type: ignore[assignment]
    return AutoencoderModule(
        nn.Sequential(*slots.corruptions), embed, encoder, code, decoder, likelihood, slots.weights
    )


def _linear(recipe: Recipe, network: Network) -> Network:
    """The network without hidden layers."""
    if network.kind not in ("auto", "dense"):
        raise SettingError(f"network={network.kind!r} with the recipe {recipe.name}", "dense")
    if network.dense.hidden or network.dense.decoder:
        asked = f"hidden={network.dense.hidden}, decoder={network.dense.decoder}"
        raise SettingError(f"{asked} with the recipe {recipe.name}", "none")
    return replace(network, kind="dense", dense=replace(network.dense, hidden=(), decoder=()))


def choose_networks(schema: Schema, network: Network) -> dict[str, str]:
    """The columns whose grids a network reads: name -> `conv`, `recurrent` or `transformer`.

    Raises:
        SettingError: where the network asked for has no column to read.
    """
    columns = [column for column in schema if column.grid and column.cells]
    if network.kind == "auto":
        chosen = {column.name: _usual(column) for column in columns}
    else:
        chosen = {column.name: network.kind for column in columns if _reads(network.kind, column)}
    if network.kind in ("conv", "recurrent") and not chosen:
        what = {"conv": "image, series, sound or text", "recurrent": "series, sound or text"}[network.kind]
        hint = "--network dense, or the column's kind: --column.NAME series"
        raise SettingError(f"network={network.kind!r} for rows without any {what}", "auto or dense", hint)
    return {name: word for name, word in chosen.items() if word != "dense"}


def positions(column: Column) -> tuple[int, ...]:
    """How the positions of a column's grid are arranged: (height, width), (steps,) or (tokens,)."""
    return column.grid if column.categorical else column.grid[:-1]


def _usual(column: Column) -> str:
    """What reached the lowest errors: on images of 8 x 8 to 32 x 32 dense layers were behind by a tenth to a half."""
    return "recurrent" if column.categorical else "conv"


def _reads(kind: str, column: Column) -> bool:
    return kind != "dense" and (kind != "recurrent" or len(positions(column)) == 1)


def _ends(schema: Schema, network: Network, masking: bool, code: Latent, likelihood: Likelihood) -> Ends:
    """Embedding, encoder and decoder."""
    chosen = choose_networks(schema, network)
    if network.members and (chosen or network.kind == "transformer"):
        kinds = ", ".join(sorted({*chosen.values()})) or network.kind
        raise SettingError(f"members={network.members} with a {kinds} network", "dense networks, or one member")
    if chosen:
        return _over_grids(schema, network, chosen, masking, code, likelihood)
    if network.kind == "transformer":
        return _over_cells(schema, network, masking, code, likelihood)
    embed = Embed(schema, masking)
    return embed, *network.dense.build(embed.width, code.features, code.size, likelihood.width)


def _over_grids(
    schema: Schema, network: Network, chosen: dict[str, str], masking: bool, code: Latent, likelihood: Likelihood
) -> Ends:
    """A network for each grid, and dense layers that join them with the rest of the row."""
    embed = GridEmbed(schema, list(chosen), masking)
    encoders, decoders, spans = [], [], []
    for index, (name, word) in enumerate(chosen.items()):
        column, start = schema[name], likelihood.spans[name].start
        outputs = column.levels + 1 if column.categorical else column.grid[-1]
        grid = Grid(positions(column), embed.channels(index), outputs)
        encoder, decoder = _settings(network, word, column).pair(grid)
        encoders.append(encoder)
        decoders.append(decoder)
        spans.append(slice(start, start + grid.count * outputs))
    rest = likelihood.width - sum(span.stop - span.start for span in spans)
    inside = embed.rest.width + sum(encoder.width for encoder in encoders)
    outside = rest + sum(decoder.width for decoder in decoders)
    down, up = _joining(network.dense, bool(rest)).build(inside, code.features, code.size, outside)
    return embed, Fused(encoders, down), Parted(up, decoders, spans, likelihood.width)


def _settings(network: Network, word: str, column: Column) -> GridNetwork:
    """The settings for a column: what is said token by token is read that way, unless the user says otherwise."""
    settings = network.named(word)
    if column.categorical and isinstance(settings, Recurrent | Transformer) and settings.autoregressive is None:
        return replace(settings, autoregressive=True)
    return settings


def _joining(dense: Dense, mixed: bool) -> Dense:
    """The dense layers between grids and code: none for a lone grid, whose network does the work."""
    return dense if mixed or dense.hidden is not None else replace(dense, hidden=(), decoder=dense.decoder or ())


def _over_cells(schema: Schema, network: Network, masking: bool, code: Latent, likelihood: Likelihood) -> Ends:
    """A transformer over the cells of a table."""
    bags = [column.name for column in schema if column.kind == "bag"]
    if bags or schema.cells > MOST_CELLS:
        got = f"network='transformer' for rows of {schema.cells:,} cells" + (" with bags" if bags else "")
        raise SettingError(got, f"at most {MOST_CELLS:,} cells, none of them a bag's", "network='dense'")
    if network.transformer.autoregressive:
        raise SettingError("autoregressive=True over the cells of a table, which have no order", "a series or a text")
    width = network.transformer.width
    one_by_one = replace(network.transformer, patch=network.transformer.patch or 1)
    encoder, decoder = one_by_one.pair(Grid((schema.cells,), width, width))
    joining = _joining(network.dense, mixed=False)
    down, up = joining.build(encoder.width, code.features, code.size, decoder.width)
    numbers = [cell for name in likelihood.spans if name in schema.names for cell in _number_cells(schema, name)]
    heads = CellHeads(numbers, schema.levels, width)
    return CellEmbed(schema, width, masking), Fused([encoder], down), Celled(up, decoder, heads)


def _number_cells(schema: Schema, name: str) -> range:
    span = schema.spans[name]
    return range(span.start, span.stop if not schema[name].categorical else span.start)
