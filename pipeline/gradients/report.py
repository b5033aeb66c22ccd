"""The comparison of estimators as a table, a conclusion and a picture."""

from __future__ import annotations

import io

from rich.table import Table

from pipeline.gradients.compare import DETERMINISTIC, Estimator

_COUNTS = [2**power for power in range(13)]
_VISIBLE = 0.3
"""A share of the gradient's norm: a bias that could be larger without being seen supports no conclusion."""


def table(found: list[Estimator], states: int) -> Table:
    """The estimators, one a row; variances are relative to that of the first."""
    result = Table("estimator", title=f"Gradient of the actor's loss in {states:,} states, in units of its norm")
    for column in ("bias", "std", "variance", "cosine"):
        result.add_column(column, justify="right", no_wrap=True)
    for one in found:
        bias = f"{one.bias:.3g}" if one.biased else f"below {one.largest_noise:.2g}"
        variance = f"{(one.std / found[0].std) ** 2:.3g}" if found[0].std > 0 else ""
        cosine = sum(one.cosines) / len(one.cosines)
        result.add_row(one.name, bias, f"{one.std:.3g}", variance, f"{cosine:.3f}")
    return result


def conclusion(found: list[Estimator]) -> list[str]:
    """Conclusions, in sentences. The deterministic limit has a bias, even one too small to be found."""
    unbiased = [one for one in found if not one.biased and one.name != DETERMINISTIC]
    lines = []
    if unbiased:
        best = min(one.std for one in unbiased)
        lowest = [one for one in unbiased if one.std <= 1.05 * best]
        if max(one.largest_noise for one in lowest) < _VISIBLE:
            lines.append(f"lowest variance, no bias found: {' and '.join(one.name for one in lowest)}")
        else:
            lines.append("too few estimates to see a bias: raise --estimates and --reference")
    lines += [
        f"biased: {one.name}, by {one.bias:.2g} times the gradient's norm, which more actions do not reduce"
        for one in found
        if one.biased
    ]
    return lines


def draw(found: list[Estimator], title: str) -> bytes:
    """The picture as PNG: the cosines of single estimates, and the error of means over actions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    left.boxplot([one.cosines for one in found], whis=(5, 95), showfliers=False)
    left.set_xticks(range(1, len(found) + 1), [one.name for one in found], rotation=15)
    left.axhline(0, color="0.7", linewidth=1)
    left.set_ylabel("cosine between one estimate and the gradient")
    left.set_title("boxes: quartiles; whiskers: 5% and 95%", fontsize="medium")
    for number, one in enumerate(found):  # thinner from line to line: some coincide
        right.loglog(_COUNTS, [one.error(count) for count in _COUNTS], linewidth=4 - 0.6 * number, label=one.name)
    right.set_xlabel("actions per state")
    right.set_ylabel("error of the gradient, relative to its norm")
    right.grid(alpha=0.3)
    right.legend()
    figure.suptitle(title)
    content = io.BytesIO()
    figure.savefig(content, dpi=120)
    plt.close(figure)
    return content.getvalue()
