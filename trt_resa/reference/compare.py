"""The comparator of every numeric test: worst element, and NaN never passes."""

from __future__ import annotations

import torch


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """||actual - expected|| / ||expected|| in double precision; inf where a NaN is involved."""
    a, e = actual.double().flatten(), expected.double().flatten()
    if a.shape != e.shape or not (torch.isfinite(a).all() and torch.isfinite(e).all()):
        return float("inf")
    norm = e.norm()
    return float((a - e).norm() / norm) if norm > 0 else float((a - e).norm())


def assert_close(
    actual: torch.Tensor, expected: torch.Tensor, *, atol: float, rtol: float, what: str
) -> None:
    """Raise AssertionError that names the worst element when any is off by more than the bound."""
    assert actual.shape == expected.shape, f"{what}: {actual.shape} against {expected.shape}"
    a, e = actual.double(), expected.double()
    off = (a - e).abs()
    excess = torch.nan_to_num(off - (atol + rtol * e.abs()), nan=torch.inf)
    if excess.numel() and bool((excess > 0).any()):
        index = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
        raise AssertionError(
            f"{what}: worst element {index}: got {float(a[index])}, expected {float(e[index])}; "
            f"{int((excess > 0).sum())} of {excess.numel()} elements are off"
        )
