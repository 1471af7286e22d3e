"""Chains of degradations: named draws of several steps, and the order in which steps are physical.

Composite groups: Zhu et al., "An intelligent agentic system for complex image restoration problems" (AgenticIR),
ICLR 2025, appendix A.3: 16 combinations on MiO100; groups A and B have two degradations, C has three.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from degradations.base import Params
from degradations.catalog import BY_NAME, DEGRADATIONS
from degradations.chains_web import Drawn, draw_apisr, draw_real_esrgan, draw_web
from degradations.resampling import LowResolutionParams, ResizeParams
from pairforge.rng import Rng


@dataclass(frozen=True)
class Chain:
    """A draw of steps: (name of a degradation, its parameters), in order, all drawn before anything runs.

    `draw` takes a severity in [0, 1] and never gives a step that changes nothing. `uses` are the names it may give.
    `version` grows by one whenever the same rng gives other steps. `labels` say what a restorer has to undo;
    `stays_small`:
    the image comes out smaller than the base. `group` is A, B or C for composites. `physical` is False where the
    order is that of a publication.
    """

    name: str
    version: int
    draw: Callable[[float, Rng], tuple[Drawn, ...]]
    uses: frozenset[str]
    source: str
    labels: tuple[str, ...]
    group: str = ""
    physical: bool = False
    stays_small: bool = False


DISTRIBUTION = frozenset({"low_resolution", "jpeg", "webp", "avif", "recompress"})
"""Steps that may follow any other, and each other, as often as a photo is passed on."""
ANYWHERE = frozenset({"resize"})
"""Steps that only say at which size the next ones work."""
_PLACE = {degradation.name: place for place, degradation in enumerate(DEGRADATIONS)}


def physical_order(names: Sequence[str]) -> list[str]:
    """The names as light, camera and web would apply them. Raises ValueError for an unknown one."""
    return sorted(names, key=_place)


def check_physical_order(names: Sequence[str]) -> None:
    """Raises ValueError for an unknown name, and for a step that comes after one which physics puts later."""
    latest = ""
    for name in names:
        if name in ANYWHERE:
            continue
        if name not in DISTRIBUTION and latest and _place(name) < _place(latest):
            wanted = " > ".join(physical_order(names))
            raise ValueError(f"{name!r} cannot come after {latest!r}; the physical order is {wanted}")
        if not latest or _place(name) > _place(latest):
            latest = name


def _place(name: str) -> int:
    if name not in _PLACE:
        raise ValueError(f"unknown degradation {name!r}; known: {', '.join(sorted(_PLACE))}")
    return _PLACE[name]


# Composites

_COMBINATIONS = {
    "A": (
        ("rain", "haze"),
        ("motion blur", "low resolution"),
        ("low light", "noise"),
        ("defocus blur", "JPEG"),
        ("noise", "JPEG"),
        ("rain", "low resolution"),
        ("motion blur", "low light"),
        ("defocus blur", "haze"),
    ),
    "B": (
        ("motion blur", "JPEG"),
        ("haze", "noise"),
        ("defocus blur", "low resolution"),
        ("rain", "low light"),
    ),
    "C": (
        ("haze", "motion blur", "low resolution"),
        ("rain", "noise", "low resolution"),
        ("low light", "defocus blur", "JPEG"),
        ("motion blur", "defocus blur", "noise"),
    ),
}
_BY_LABEL = {
    "rain": "rain",
    "haze": "haze",
    "motion blur": "motion_blur",
    "defocus blur": "defocus_blur",
    "low light": "low_light",
    "noise": "sensor_noise",
    "low resolution": "low_resolution",
    "JPEG": "jpeg",
}


def _names_of(labels: Sequence[str]) -> list[str]:
    """`low_light` brings noise of its own, so where noise is a label of its own the tone curve takes its place."""
    names = [_BY_LABEL[label] for label in labels]
    if "noise" in labels and "low light" in labels:
        names[names.index("low_light")] = "low_light_curve"
    return physical_order(names)


def draw_composite(severity: float, rng: Rng, labels: tuple[str, ...]) -> tuple[Drawn, ...]:
    """One step a label, in physical order, each at 0.8 to 1 of the severity.

    Where noise meets low resolution it is added at the small size, between shrinking and enlarging: enlarging
    alone keeps it, while shrinking after it would average it away and make its label false.
    """
    drawn: dict[str, Params] = {}
    for name in _names_of(labels):
        drawn[name] = BY_NAME[name].sample(severity * rng.uniform(0.8, 1.0), rng)
    if not {"noise", "low resolution"} <= set(labels):
        return tuple(drawn.items())
    size = drawn.pop("low_resolution")
    noise = drawn.pop("sensor_noise")
    assert isinstance(size, LowResolutionParams)
    down = ResizeParams(size_frac=1 / size.shrink_ratio, kernel=size.down)
    up = ResizeParams(size_frac=1.0, kernel=size.up)
    return (*drawn.items(), ("resize", down), ("sensor_noise", noise), ("resize", up))


def _composite(group: str, number: int, labels: tuple[str, ...]) -> Chain:
    names = set(_names_of(labels))
    if {"noise", "low resolution"} <= set(labels):
        names = names - {"low_resolution"} | {"resize"}
    return Chain(
        name=f"composite_{group.lower()}{number}",
        version=1,
        draw=partial(draw_composite, labels=labels),
        uses=frozenset(names),
        source="Zhu et al., AgenticIR, ICLR 2025, appendix A.3: combinations on MiO100",
        labels=labels,
        group=group,
        physical=True,
    )


_SECOND_ORDER = frozenset(
    {
        "web_gaussian_blur",
        "web_plateau_blur",
        "web_sinc_blur",
        "resize",
        "gaussian_noise",
        "poisson_noise",
        "jpeg",
    }
)
_ESRGAN_SOURCE = "Wang et al., Real-ESRGAN, ICCVW 2021, section 3 and published settings"
_APISR_SOURCE = "Wang et al., APISR, CVPR 2024, section 3 and published settings; no video codecs"

CHAINS: tuple[Chain, ...] = (
    Chain(
        name="web",
        version=1,
        draw=draw_web,
        uses=_SECOND_ORDER - {"web_plateau_blur", "poisson_noise"} | {"web_motion_blur", "granular_noise", "webp"},
        source="a light mix of the steps of Real-ESRGAN, ICCVW 2021, with motion blur, WebP and grain",
        labels=("mixed",),
    ),
    Chain("real_esrgan", 1, partial(draw_real_esrgan, stays_small=False), _SECOND_ORDER, _ESRGAN_SOURCE, ("mixed",)),
    Chain(
        "real_esrgan_x4",
        1,
        partial(draw_real_esrgan, stays_small=True),
        _SECOND_ORDER,
        _ESRGAN_SOURCE,
        ("mixed",),
        stays_small=True,
    ),
    Chain(
        "apisr", 1, partial(draw_apisr, stays_small=False), _SECOND_ORDER | {"webp", "avif"}, _APISR_SOURCE, ("mixed",)
    ),
    Chain(
        "apisr_x4",
        1,
        partial(draw_apisr, stays_small=True),
        _SECOND_ORDER | {"webp", "avif"},
        _APISR_SOURCE,
        ("mixed",),
        stays_small=True,
    ),
    *(
        _composite(group, number, labels)
        for group, combinations in _COMBINATIONS.items()
        for number, labels in enumerate(combinations, 1)
    ),
)
CHAIN_BY_NAME = {chain.name: chain for chain in CHAINS}
