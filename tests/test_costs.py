"""What rows cost in training against the cells' own log densities, added up: values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from narrows.model.entropy import CrossEntropy
from narrows.model.families import Bernoulli, Gaussian, Huber, NegativeBinomial, Poisson, SquaredError, Student
from narrows.model.likelihoods import Likelihood
from narrows.networks.dense import Dense
from narrows.schema import Batch, Column, Schema

CELLS = 9
FAMILIES = {
    "mse": lambda members: SquaredError(),
    "mse in range": lambda members: SquaredError("sigmoid"),
    "huber": lambda members: Huber(0.5),
    "gaussian": lambda members: Gaussian(CELLS, members=members),
    "gaussian(0.1)": lambda members: Gaussian(CELLS, 0.1),
    "student": lambda members: Student(CELLS, members=members),
    "bernoulli": lambda members: Bernoulli(),
    "poisson": lambda members: Poisson(),
    "negative_binomial": lambda members: NegativeBinomial(CELLS, members),
}


def made(family: str, members: int | None) -> tuple[nn.Module, Tensor, Tensor]:
    """A family with scales of its own, outputs of two draws of six rows, and cells that also leave their range."""
    torch.manual_seed(1)
    module = FAMILIES[family](members)
    for weight in module.parameters():
        nn.init.normal_(weight)
    outputs = 4 * torch.randn(2, *([members] if members else []), 6, CELLS)
    return module, outputs.requires_grad_(), torch.rand(6, CELLS) * 1.5 - 0.2


def gradients(cost: Tensor, module: nn.Module, outputs: Tensor) -> tuple[Tensor, ...]:
    share = torch.linspace(0.5, 2.0, cost.numel()).view(cost.shape)  # each row counts for something else
    return torch.autograd.grad((cost * share).sum(), [outputs, *module.parameters()])


@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_cost_what_their_cells_cost(family, members):
    module, outputs, cells = made(family, members)
    cost, slow = module.cost(outputs, cells), -module.log_prob(outputs, cells).sum(-1)
    torch.testing.assert_close(cost, slow)
    pairs = zip(gradients(cost, module, outputs), gradients(slow, module, outputs), strict=True)
    for fast, wanted in pairs:
        torch.testing.assert_close(fast, wanted)


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0, 1e4])
def test_cross_entropy_is_exact_for_small_and_for_huge_logits(size):
    outputs = (size * torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0))).requires_grad_()
    cells = (torch.rand(5, 40, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.2).clamp(0, 1)
    exact = outputs.detach().double().requires_grad_()
    wanted = nn.functional.binary_cross_entropy_with_logits(exact, cells.double().expand(2, 5, 40), reduction="none")
    got = CrossEntropy.apply(outputs, cells)
    torch.testing.assert_close(got.double(), wanted.sum(-1), rtol=1e-6, atol=1e-5)
    got.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(outputs.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("members", [None, 2])
def test_rows_of_several_families_and_categories_cost_what_their_cells_cost(seen, members):
    columns = [Column("a", "number", "double", width=2), Column("b", "number", "double", bounded=True)]
    schema = Schema((*columns, Column("n", "count", "int64"), Column("c", "category", "string", width=0, levels=3)))
    draw = torch.Generator().manual_seed(2)
    batch = Batch(torch.rand(5, 4, generator=draw), torch.randint(0, 4, (5, 1), generator=draw))
    batch = batch.with_seen(torch.rand(5, 5, generator=draw) < 0.5) if seen else batch
    likelihood = Likelihood(schema, members=members)
    outputs = torch.randn(2, *([members] if members else []), 5, likelihood.width, generator=draw)
    p = likelihood(outputs)
    torch.testing.assert_close(p.cost(batch), -p.log_prob(batch).sum(-1))


def test_a_stack_gives_what_its_layers_give_for_any_leading_axes():
    down, x = Dense((7, 5)).build(4, 3, 3, 4)[0], torch.randn(2, 3, 6, 4)
    wanted = x
    for layer in down.children():
        wanted = layer(wanted)
    torch.testing.assert_close(down(x), wanted)
    assert down(x[:, :, :0]).shape == (2, 3, 0, 3)
