"""What a campaign that misses its target says of why."""

from typing import Any

import pytest

from esm_host.arguments import on_command_line
from esm_host.extension.settings import Settings
from esm_host.extension.signatures import signatures
from esm_protos.messages import MeasureSpec


def rounds(*bins: tuple[float, ...], overall: tuple[float, ...], again: int = 0) -> list[Any]:
    """Rounds of 100 models more each; ``bins`` by round."""
    return [
        {
            "measured_models": 300 + 100 * number,
            "accuracy_percent": accuracy,
            "bins": [
                {"depth_min": 4 * b, "depth_max": 4 * b + 3, "samples": 50, "accuracy_percent": v}
                for b, v in enumerate(values)
            ],
            "qc": {"passed": not again, "remeasured_blocks": again},
        }
        for number, (values, accuracy) in enumerate(zip(bins, overall, strict=True))
    ]


def names(found: list[Any], **settings: Any) -> list[str]:
    return [each.name for each in signatures(found, Settings("pi4", **settings))]


FLAT = rounds((90, 91), (91, 91), (90, 91), overall=(91.0, 91.2, 91.1))


def test_a_plateau_names_the_encoding_and_then_the_noise() -> None:
    assert names(FLAT) == ["plateau"]
    (by_fcc,) = signatures(FLAT, Settings("pi4", predictor="mlp"))
    (by_auto,) = signatures(FLAT, Settings("pi4"))
    assert "--encoding views" in on_command_line(by_fcc.text)
    assert "doctor" in by_auto.text


def test_a_plateau_of_latencies_that_are_not_known_asks_for_a_quieter_device() -> None:
    (found,) = signatures(FLAT, Settings("pi4"), interval=0.23)
    assert found.name == "noise"
    assert (
        "intervals of ±23 % (median) instead of ±2 %: stop other programs on the device"
        in found.text
    )
    assert "precision" not in on_command_line(found.text)
    assert signatures(FLAT, Settings("pi4"), interval=0.03)[0].name == "plateau"


@pytest.mark.parametrize(
    ("sampling", "cure"),
    [
        ("random", "--sampling informative"),
        ("balanced", "--extension cost-aware"),
        ("informative", "raise --max-models"),
    ],
)
def test_one_bin_that_stays_behind_is_named(sampling: str, cure: str) -> None:
    behind = rounds((96, 90), (96, 91), (97, 92), overall=(93, 94, 95))
    (found,) = signatures(behind, Settings("pi4", sampling=sampling))
    assert found.name == "bin"
    assert "4-7 blocks, 92.0 % from 50 models" in found.text
    assert cure in on_command_line(found.text)


def test_quality_control_that_keeps_failing_is_told() -> None:
    growing = {"overall": (90, 92, 94)}
    assert names(rounds((90, 90), (92, 92), (94, 94), again=4, **growing)) == ["quality control"]
    assert names(rounds((90, 90), (92, 92), (94, 94), **growing)) == []


def test_the_cure_of_quality_control_is_an_option_of_the_campaign() -> None:
    failing = rounds((90, 90), (92, 92), (94, 94), again=4, overall=(90, 92, 94))
    (found,) = signatures(failing, Settings("pi4"))
    cure = "give more runs of each model in a new campaign"
    assert on_command_line(found.text).endswith(f"{cure} (--max-runs 150)")
    exact = Settings("pi4", spec=MeasureSpec(runs=30))
    (found,) = signatures(failing, exact)
    assert on_command_line(found.text).endswith(f"{cure} (--runs 30)")


def test_blocks_of_the_first_round_count() -> None:
    two = rounds((90, 90), (92, 92), overall=(90, 92))
    two[0]["qc"]["remeasured_blocks"] = 1  # of 8 blocks
    assert names(two, block_size=50) == []
    two[1]["qc"]["remeasured_blocks"] = 2
    assert names(two, block_size=50) == ["quality control"]


def test_a_campaign_that_still_gains_or_has_few_rounds_has_none() -> None:
    assert names(FLAT[:2]) == []
    assert names(rounds((80, 80), (85, 85), (90, 90), overall=(80, 85, 90))) == []
