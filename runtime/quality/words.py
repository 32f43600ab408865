"""Words, and sentences of them that say nothing: the hay in which needles are hidden."""

from __future__ import annotations

import random


def _parts(text: str, separator: str = " ") -> tuple[str, ...]:
    return tuple(text.split(separator))


ADJECTIVES = _parts(
    "amber bitter brave calm clever cold crimson curious dark deep dusty eager early faint "
    "fierce gentle golden grand green hollow honest humble icy jolly keen late lively lonely "
    "loud lucky mellow misty narrow noble odd pale plain proud quick quiet rapid rare rough "
    "round royal rusty salty sharp shy silent silver simple sleepy slow smooth soft solid "
    "steady stern strange sweet swift tall tame tender thin tidy tiny velvet vivid warm weary "
    "wide wild wise young"
)
NOUNS = _parts(
    "acorn anchor anvil apple arrow badger barrel basket beacon beetle bell bottle bridge "
    "bucket candle canyon castle cedar clock cloud compass copper coral cradle crane cricket "
    "drum eagle falcon feather fiddle forest fox garden glacier hammer harbor heron hinge "
    "island ivy jacket kettle kite ladder lantern lemon lily lion maple marble meadow mirror "
    "mitten orchard otter owl paddle pebble pepper pillow planet plum pony quilt raven ribbon "
    "river rocket saddle shovel spoon sparrow spruce stone table thistle tiger tower trumpet "
    "turtle valley violin wagon walnut whale willow window"
)
_PEOPLE = _parts(
    "baker captain carpenter clerk cook doctor driver farmer fisher gardener guard judge "
    "mason miller nurse painter pilot potter sailor singer smith tailor teacher weaver writer"
)
_VERBS = _parts(
    "admired borrowed bought brought carried cleaned counted described drew examined fetched "
    "found hid inspected kept lent lifted measured moved painted polished remembered repaired "
    "sold sketched washed watched weighed wrapped"
)
_PLACES = _parts(
    "at the market|behind the mill|beside the road|by the old bridge|in the square|near the "
    "station|on the hill|outside the town|under the arches|beyond the fields|across the "
    "river|along the shore",
    "|",
)
_TIMES = _parts(
    "After lunch|At noon|Before the storm|During the fair|Early that day|In the evening|Later "
    "that week|On Monday|One morning|Some years ago|Towards night|Without a word",
    "|",
)


def sentence(rng: random.Random) -> str:
    """As "On Monday the old baker carried the tiny lantern near the station." """
    return (
        f"{rng.choice(_TIMES)} the {rng.choice(ADJECTIVES)} {rng.choice(_PEOPLE)} "
        f"{rng.choice(_VERBS)} the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} "
        f"{rng.choice(_PLACES)}."
    )


def filler(seed: int, sentences: int) -> str:
    """Sentences; more of them begin as fewer of the same ``seed`` do."""
    rng = random.Random(f"filler {seed}")
    return " ".join(sentence(rng) for _ in range(sentences))


def keys(rng: random.Random, count: int) -> list[str]:
    """Different names, as "velvet-otter"."""
    numbers = rng.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
    return [f"{ADJECTIVES[n // len(NOUNS)]}-{NOUNS[n % len(NOUNS)]}" for n in numbers]
