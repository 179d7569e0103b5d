"""View models of counterfactuals: how generated images change when training images are removed."""

from typing import Literal

import numpy as np

from dtrak.evaluation.counterfactual import LABEL, MATCHED, SEED, Counterfactuals, mean_with_interval
from dtrak.methods.registry import METHODS


def removal_title(kind: str) -> str:
    """What was removed, in words."""
    controls = {LABEL: "The whole label", SEED: "Nothing, another seed"}
    name = kind.removesuffix(MATCHED)
    title = controls.get(kind) or METHODS[name].title
    return f"Random, matched to {title}" if kind.endswith(MATCHED) else title


def effect(found: Counterfactuals) -> str:
    """Whether removing a method's top images changes images more than removing random ones, in words."""
    words, adjusted = [], found.adjusted()
    for name in [k for k in found.kinds if k in METHODS and not METHODS[k].control]:
        other = name + MATCHED if name + MATCHED in found.kinds else "random"
        if not found.of(other):
            continue
        mean, low, high = found.further(name, other)
        than = "more than" if low > 0 else "less than" if high < 0 else "not significantly more than"
        between = f"by {mean:+.2f}, 95 %: {low:+.2f} to {high:+.2f}".replace("-", "−")
        p_value = f", p = {adjusted[name]:.2g} (Holm)" if name in adjusted else ""
        random = "random images of the same labels and creators" if other != "random" else "random images"
        words.append(f"{METHODS[name].title}: **{than}** removing {random} ({between}{p_value})")
    return f"Removing a method's top images changes the generated images. {'; '.join(words)}." if words else ""


def removal_values(found: Counterfactuals, value: Literal["distance", "cosine"]) -> dict[str, list[float]]:
    """How much each generated image changed, by the title of the method whose top images were removed.

    Args:
        value: "distance", ℓ2 of pixels in [−1, 1], or "cosine", of embeddings.
    """
    return {removal_title(kind): [getattr(pair, value) for pair in found.of(kind)] for kind in found.kinds}


def removal_means(found: Counterfactuals) -> list[dict[str, str]]:
    """The counterfactual table: means over images, with 95 % bootstrap intervals."""
    distances, cosines = removal_values(found, "distance"), removal_values(found, "cosine")
    return [
        {
            "removed by": title,
            "pixel distance, ℓ2": "{:.2f} ({:.2f} to {:.2f})".format(*mean_with_interval(np.array(distances[title]))),
            "embedding cosine": "{:.3f} ({:.3f} to {:.3f})".format(*mean_with_interval(np.array(cosines[title]))),
        }
        for title in distances
        if distances[title]
    ]
