"""The projections against brute force: dense search over the simplex."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from tests.norms.oracles import tensors
from wsbcn_d2.norms import sparsemax, sparsestmax
from wsbcn_d2.norms.sparsemax import circumradius, sparsestmax_jacobian

R3 = math.sqrt(2 / 3)


def grid(choices: int) -> Tensor:
    """All points of the simplex whose coordinates are multiples of 1 / steps."""
    steps = {2: 20000, 3: 800, 4: 90}[choices]
    axes = (
        torch.cartesian_prod(*[torch.arange(steps + 1)] * (choices - 1))
        if choices > 2
        else torch.arange(steps + 1)[:, None]
    )
    axes = axes[axes.sum(1) <= steps]
    points = torch.cat([axes, steps - axes.sum(1, keepdim=True)], 1)
    return points.double() / steps


@pytest.fixture(scope="module")
def grids() -> dict[int, Tensor]:
    return {choices: grid(choices) for choices in (2, 3, 4)}


def controls(choices: int, count: int, seed: int) -> Tensor:
    (z,) = tensors(seed, (count, choices))
    spread = torch.tensor([0.05, 0.3, 1.0, 3.0], dtype=torch.float64).repeat(count // 4 + 1)[:count]
    return z * spread[:, None]


def check_on_simplex(p: Tensor, radius: float = 0.0) -> None:
    assert (p >= 0).all()
    tolerance = 1e-6 if p.dtype == torch.float32 else 1e-12
    assert_close(p.sum(-1), torch.ones_like(p.sum(-1)), rtol=0, atol=tolerance)
    distance = (p.double() - 1 / p.shape[-1]).norm(dim=-1)
    assert (distance >= min(radius, circumradius(p.shape[-1])) - 1e-6).all()


@pytest.mark.parametrize("choices", [2, 3, 4])
def test_sparsemax_is_the_nearest_point_of_the_simplex(
    choices: int, grids: dict[int, Tensor]
) -> None:
    z = controls(choices, 24, 0)
    p = sparsemax(z)
    check_on_simplex(p)
    best = torch.stack([(grids[choices] - row).norm(dim=1).min() for row in z])
    ours = (p - z).norm(dim=1)
    assert (ours <= best + 1e-9).all()
    # The grid is fine enough to tell: its best is hardly worse.
    assert (best - ours <= {2: 1e-4, 3: 2e-3, 4: 2e-2}[choices]).all()


@pytest.mark.parametrize("choices", [2, 3, 4])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.55, 0.7, 0.9, 0.99, 1.0])
def test_sparsestmax_is_the_nearest_point_outside_the_ball(
    choices: int, share: float, grids: dict[int, Tensor]
) -> None:
    radius = share * circumradius(choices)
    z = controls(choices, 40, 1)
    p = sparsestmax(z, radius)
    check_on_simplex(p, radius)
    points = grids[choices]
    points = points[(points - 1 / choices).norm(dim=1) >= radius - 1e-12]
    best = torch.stack([(points - row).norm(dim=1).min() for row in z])
    ours = (p - z).norm(dim=1)
    # 1e-9: no grid point is nearer. The bound below: ours is no nearer than the grid explains.
    assert (ours <= best + 1e-9).all()
    assert (best - ours <= {2: 2e-4, 3: 3e-3, 4: 4e-2}[choices]).all()


@pytest.mark.parametrize("choices", [3, 4])
def test_no_random_feasible_point_is_nearer(choices: int) -> None:
    """Points on the sphere itself, where the grid has few, along the whole way to the corners."""
    generator = torch.Generator().manual_seed(2)
    for share in (0.3, 0.6, 0.8, 0.95):
        radius = share * circumradius(choices)
        direction = torch.randn(200000, choices, generator=generator, dtype=torch.float64)
        direction = direction - direction.mean(1, keepdim=True)
        points = 1 / choices + radius * direction / direction.norm(dim=1, keepdim=True)
        points = points[(points >= 0).all(1)]
        assert len(points) > 100
        z = controls(choices, 40, 3)
        ours = (sparsestmax(z, radius) - z).norm(dim=1)
        best = torch.cdist(z, points).amin(1)
        assert (ours <= best + 1e-9).all()


@pytest.mark.parametrize("choices", [2, 3, 4])
def test_radius_zero_is_sparsemax(choices: int) -> None:
    z = controls(choices, 40, 4)
    assert_close(sparsestmax(z, 0), sparsemax(z), rtol=0, atol=0)


@pytest.mark.parametrize("choices", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_from_the_circumradius_on_it_is_one_hot(choices: int, dtype: torch.dtype) -> None:
    z = controls(choices, 40, 5).to(dtype)
    for radius in (circumradius(choices) + 1e-9, 0.9, 2.0, 1e6):
        if radius < circumradius(choices):
            continue
        p = sparsestmax(z, radius)
        expected = torch.nn.functional.one_hot(z.argmax(-1), choices).to(dtype)
        assert_close(p, expected, rtol=0, atol=0)


TIES = [
    [1.0, 1.0, 1.0],
    [0.0, 0.0, 0.0],
    [2.0, 2.0, 0.0],
    [1.0, 0.0, 0.0],
    [0.3, 0.3, 0.29],
    [-5.0, -5.0, -5.0],
]


@pytest.mark.parametrize("radius", [0.0, 0.1, 0.4, 0.41, 0.5, 0.7, 0.81, R3, 0.8165, 1.0])
@pytest.mark.parametrize("values", TIES, ids=str)
def test_ties_are_finite_and_deterministic(values: list[float], radius: float) -> None:
    """Design trap 18: NaN or endless recursion in the released code."""
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        z = torch.tensor(values, dtype=torch.float64)[order].requires_grad_()
        p = sparsestmax(z, radius)
        check_on_simplex(p.detach(), radius)
        (grad,) = torch.autograd.grad(p, z, torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64))
        assert torch.isfinite(grad).all()
        assert_close(sparsestmax(z, radius), p, rtol=0, atol=0)
    if len(set(values)) == 1 and radius > 0:
        assert p.argmax() == 0  # earlier entries win


def test_entries_apart_by_one_ulp_are_finite() -> None:
    """Design trap 18: max - min == 1 is tested exactly in the released code."""
    one = torch.tensor(1.0, dtype=torch.float32)
    for top in (
        one,
        torch.nextafter(one, torch.tensor(2.0)),
        torch.nextafter(one, torch.tensor(0.0)),
    ):
        for rest in (0.0, 1e-45, 1e-8, -1e-8):
            for radius in (0.0, 0.5, R3 - 1e-7, R3, 0.8165, 1.0):
                z = torch.stack([torch.tensor(rest), top, torch.tensor(0.0)]).requires_grad_()
                p = sparsestmax(z, radius)
                check_on_simplex(p.detach(), radius)
                assert p.argmax() == 1 and p[1] > 0.99
                (grad,) = torch.autograd.grad(p.square().sum(), z)
                assert torch.isfinite(grad).all()


def test_a_zero_in_sparsemax_does_not_lead_astray() -> None:
    """Design trap 18: the released code takes a wrong path there."""
    z = torch.tensor([0.6, 0.5, -3.0], dtype=torch.float64)  # sparsemax (0.55, 0.45, 0)
    p = sparsestmax(z, 0.6)
    half = math.sqrt((0.36 - 1 / 6) / 2)  # on the edge of the first two
    assert_close(p, torch.tensor([0.5 + half, 0.5 - half, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("radius", [0.0, 0.2, 0.5, 0.7, 0.8])
def test_gradients_match_finite_differences_away_from_ties(radius: float) -> None:
    checked = 0
    for z in controls(3, 40, 6):
        p = sparsestmax(z, radius)
        gaps = (z[:, None] - z).abs()[~torch.eye(3, dtype=torch.bool)]
        on_edge = (p[p > 0] < 1e-3).any() or (
            ((sparsemax(z) - 1 / 3).norm() - radius).abs() < 1e-3 or gaps.min() < 2e-2
        )
        support = sparsemax(z)
        if on_edge or (support[support > 0] < 1e-3).any():
            continue
        assert gradcheck(lambda t: sparsestmax(t, radius), z.clone().requires_grad_())
        checked += 1
    assert checked >= 10


def test_leading_dimensions_are_independent() -> None:
    (z,) = tensors(7, (2, 5, 3))
    p = sparsestmax(z, 0.5)
    rows = torch.stack([sparsestmax(row, 0.5) for row in z.reshape(-1, 3)])
    assert_close(p, rows.reshape(2, 5, 3))
    assert_close(sparsestmax(z, torch.tensor(0.5)), p)
    assert sparsestmax(z.half(), 0.5).dtype == torch.float16


def test_not_a_number_stays_one() -> None:
    z = torch.tensor([float("nan"), 0.0, 1.0])
    assert sparsemax(z).isnan().any() and sparsestmax(z, 0.5).isnan().any()


@pytest.mark.parametrize("radius", [-0.1, float("nan")])
def test_a_radius_below_zero_is_refused(radius: float) -> None:
    with pytest.raises(ValueError, match=r"radius \(.*\) must be a number >= 0"):
        sparsestmax(torch.zeros(3), radius)


@pytest.mark.parametrize("radius", [0.0, 0.2, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("choices", [1, 2, 3, 4])
def test_the_jacobian_is_that_of_autograd(choices: int, radius: float) -> None:
    (z,) = tensors(20, (40, choices))
    z.requires_grad_()
    at = torch.tensor(radius, dtype=torch.float64)
    p = sparsestmax(z, at)
    rows = [torch.autograd.grad(p[:, k].sum(), z, retain_graph=True)[0] for k in range(choices)]
    assert_close(sparsestmax_jacobian(z.detach(), p.detach(), at), torch.stack(rows, 1))
