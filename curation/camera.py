"""Camera motion of a clip: a robust global fit to coarse flow fields, and a label from it.

Each field is explained by one translation, one zoom and one rotation of the whole picture (a similarity); what moves
against that is an object and must not pull on the fit. The labels are those the camera-motion LoRAs are trained on
(Stable Video Diffusion, section 4 and App. D): static, horizontal, vertical, zooming, rotating; everything else, a
diagonal or a hand-held shot, is complex.

Units: displacements in pixels of the reduced field (16 px on its shortest side) per 0.5 s; divergence and curl per 0.5
s.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LABELS = ("static", "horizontal", "vertical", "zooming", "rotating", "complex")

# The four thresholds below were chosen on warps of real frames and on static-camera footage: see
# tests/curation/test_camera.py, which holds one case on each side of every one of them.

STATIC_BELOW = 0.06
"""Root mean square displacement by the camera below which a shot is static: 0.4 % of the frame's short side in 0.5
s."""

DOMINANT_SHARE = 0.75
"""Share of the camera's squared displacement that one kind of motion needs to give its name to the clip."""

COHERENT_ABOVE = 0.6
"""Steadiness from one pair to the next (see `_coherence`) below which a motion is shake, not a move."""

SUSTAINED_SHARE = 0.5
"""Share of the time in which a motion must be there to name the clip: a hand that fills one frame is not a tilt."""

_SCALE_FLOOR_PX = 0.02  # flow noise on a still picture; keeps the robust weights finite on perfect fits
_ITERATIONS = 8


@dataclass(frozen=True)
class GlobalMotion:
    """Similarity fits of P flow fields; every array has shape (P,).

    Attributes:
        dx, dy: displacement at the centre of the picture, to the right and down.
        divergence: du/dx + dv/dy, positive for a zoom in.
        curl: dv/dx - du/dy, positive for a picture that turns clockwise.
        residual: mean over the field of the magnitude of flow minus fit.
        inliers: mean robust weight, 1 where the fit explains the whole field.
        radius_px: root mean square distance of a cell from the centre (a number): turns rates into displacements.
    """

    dx: NDArray[np.float64]
    dy: NDArray[np.float64]
    divergence: NDArray[np.float64]
    curl: NDArray[np.float64]
    residual: NDArray[np.float64]
    inliers: NDArray[np.float64]
    radius_px: float


def fit_global_motion(fields: NDArray[np.floating], confidence: NDArray[np.floating] | None = None) -> GlobalMotion:
    """Fit u = dx + a x - b y, v = dy + b x + a y to each field by iteratively reweighted least squares (Geman-McClure).

    Args:
        fields: (P, H, W, 2) flow, x then y, in pixels of the field.
        confidence: (P, H, W) in [0, 1]; how far a cell's flow can be trusted (0 on a textureless wall, whose measured
            flow is zero whatever the camera does). All ones if left out.

    The outermost cells are left out where the field is large enough: what enters the picture there has no
    correspondence in the frame before.
    """
    pairs, height, width, _ = fields.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    x -= (width - 1) / 2
    y -= (height - 1) / 2
    trusted = np.ones((pairs, height, width)) if confidence is None else np.asarray(confidence, np.float64).copy()
    if min(height, width) >= 6:
        trusted[:, [0, -1], :] = 0
        trusted[:, :, [0, -1]] = 0
    # A picture without any texture still gets a fit (of its zero flow) instead of a singular system.
    trusted = (trusted + 1e-6).reshape(pairs, -1)

    flow = np.asarray(fields, np.float64).reshape(pairs, -1, 2)
    cells = flow.shape[1]
    ones, zeros = np.ones(cells), np.zeros(cells)
    flat_x, flat_y = x.ravel(), y.ravel()
    design = np.stack([np.stack([ones, zeros, flat_x, -flat_y], -1), np.stack([zeros, ones, flat_y, flat_x], -1)])

    def residuals(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        fitted = np.einsum("cnk,pk->pnc", design, parameters)
        return np.linalg.norm(flow - fitted, axis=-1)

    # The median start keeps a moving object of up to half the picture from deciding what the camera does.
    parameters = np.zeros((pairs, 4))
    parameters[:, 0] = _weighted_median(flow[..., 0], trusted)
    parameters[:, 1] = _weighted_median(flow[..., 1], trusted)
    robust = np.ones_like(trusted)
    for _ in range(_ITERATIONS):
        distance = residuals(parameters)
        scale = np.maximum(1.4826 * _weighted_median(distance, trusted), _SCALE_FLOOR_PX)[:, None]
        robust = 1 / (1 + (distance / (2 * scale)) ** 2) ** 2
        weight = trusted * robust
        normal = np.einsum("cnk,pn,cnl->pkl", design, weight, design)
        target = np.einsum("cnk,pn,pnc->pk", design, weight, flow)
        normal += 1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(4)
        parameters = np.linalg.solve(normal, target[..., None])[..., 0]
    return GlobalMotion(
        dx=parameters[:, 0],
        dy=parameters[:, 1],
        divergence=2 * parameters[:, 2],
        curl=2 * parameters[:, 3],
        residual=residuals(parameters).mean(axis=1),
        inliers=(trusted * robust).sum(axis=1) / trusted.sum(axis=1),
        radius_px=float(np.sqrt((flat_x**2 + flat_y**2).mean())),
    )


def camera_label(motion: GlobalMotion, weight: NDArray[np.floating]) -> str:
    """One of `LABELS` for a clip. Each pair of frames counts with `weight` (P,), the share of the time that it spans.

    The magnitude of each kind of motion counts, never its signed mean: a pan to the left and back is horizontal. A
    motion that changes direction from every pair to the next is hand-held shake: complex.
    """
    kinds = {
        "horizontal": motion.dx,
        "vertical": motion.dy,
        "zooming": motion.divergence / 2 * motion.radius_px,
        "rotating": motion.curl / 2 * motion.radius_px,
    }
    energy = {kind: float(weight @ series**2) for kind, series in kinds.items()}
    total = sum(energy.values())
    if np.sqrt(total) < STATIC_BELOW:
        return "static"
    kind = max(energy, key=lambda name: energy[name])
    sustained = float(weight @ (np.abs(kinds[kind]) > STATIC_BELOW / 2))
    steady = _coherence(kinds[kind], weight) >= COHERENT_ABOVE
    return kind if energy[kind] >= DOMINANT_SHARE * total and sustained >= SUSTAINED_SHARE and steady else "complex"


def _coherence(series: NDArray[np.float64], weight: NDArray[np.floating]) -> float:
    """Sum |s_i + s_(i+1)| / sum (|s_i| + |s_(i+1)|), each term weighed by both pairs' time: 1 for a steady move, near 1
    for one that turns once, low for shake."""
    if len(series) < 2:
        return 1.0
    left, right, both = series[:-1], series[1:], weight[:-1] + weight[1:]
    return float(both @ np.abs(left + right) / max(both @ (np.abs(left) + np.abs(right)), 1e-12))


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of each row of (P, N) values under (P, N) weights."""
    order = np.argsort(values, axis=1)
    cumulative = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    middle = (cumulative < cumulative[:, -1:] / 2).sum(axis=1, keepdims=True)
    return np.take_along_axis(np.take_along_axis(values, order, axis=1), middle, axis=1)[:, 0]
