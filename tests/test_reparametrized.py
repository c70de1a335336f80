"""Draws for importance weights: their values, and a gradient that differs from the plain one in its noise alone."""

import torch

from narrows.model.latents import Gaussian, log_ratio
from narrows.model.reparametrized import Reparametrized


def drawn(samples, rows, size):
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, size), (rows, size), (samples, rows, size)
    return [0.5 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def joint(z, rows):
    """Some log p(x|z) that is no quadratic: (K, B) of draws (K, B, size) and rows (B, size)."""
    return -(torch.sin(2 * z) - rows).square().sum(-1) - 0.1 * z.pow(4).sum(-1)


def bound(z, ratio, rows):
    return torch.logsumexp(joint(z, rows) - ratio, dim=0).mean()


def plain(mean, log_variance, noise):
    z = mean + (0.5 * log_variance).exp() * noise
    return z, log_ratio(z, noise, log_variance).sum(-1)


def gradients(draw, tensors, rows):
    mean, log_variance, noise = (tensor.clone() for tensor in tensors)
    mean.requires_grad_()
    log_variance.requires_grad_()
    bound(*draw(mean, log_variance, noise), rows).backward()
    return torch.stack([mean.grad, log_variance.grad])


def test_draws_and_ratios_are_the_plain_ones():
    tensors = drawn(4, 3, 2)
    for ours, theirs in zip(Reparametrized.apply(*tensors), plain(*tensors), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_gradient_is_the_one_of_the_paper():
    mean, log_variance, noise = tensors = drawn(5, 3, 2)
    rows = torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2)
    moving = [tensor.clone().requires_grad_() for tensor in (mean, log_variance)]
    z, _ = plain(*moving, noise)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())  # its own parameters stand still
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    weights = joint(z, rows) - posterior.log_prob(z).sum(-1) + prior.log_prob(z).sum(-1)
    (weights.softmax(0).detach().square() * weights).sum(0).mean().backward()
    wanted = torch.stack([tensor.grad for tensor in moving])
    torch.testing.assert_close(gradients(Reparametrized.apply, tensors, rows), wanted)


def test_its_mean_is_that_of_the_plain_gradient_and_its_spread_is_smaller():
    rows, count = torch.tensor([[0.3, -0.4]], dtype=torch.float64), 40_000
    mean, log_variance, noise = drawn(3, count, 2)
    tensors = [mean[:1].expand(count, -1), log_variance[:1].expand(count, -1), noise * 2]
    ours, theirs = (gradients(draw, tensors, rows) * count for draw in (Reparametrized.apply, plain))
    error = (ours - theirs).std(1) / count**0.5
    assert ((ours.mean(1) - theirs.mean(1)).abs() < 4 * error).all()
    assert (ours.std(1) < theirs.std(1)).all()


def test_an_exact_posterior_has_no_gradient_at_all():
    # p(x|z) = N(z, 1): the posterior of x is N(x / 2, 1 / 2)
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    mean, log_variance = (0.5 * x).requires_grad_(), torch.full_like(x, 0.5).log().requires_grad_()
    z, ratio = Reparametrized.apply(mean, log_variance, drawn(4, 1, 2)[2])
    torch.logsumexp(-0.5 * (x - z).square().sum(-1) - ratio, dim=0).sum().backward()
    torch.testing.assert_close(mean.grad, torch.zeros_like(x))
    torch.testing.assert_close(log_variance.grad, torch.zeros_like(x))


def test_rows_without_weight_have_no_gradient():
    features = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    code = Gaussian(3)(features, samples=4, ratio=True)
    each = torch.logsumexp(code.z.sum(-1) - code.terms["kl"], dim=0)
    (each * torch.tensor([1.0, 0.0])).sum().backward()
    assert features.grad[0].abs().min() > 0
    assert (features.grad[1] == 0).all()
