"""Campaigns on spaces of words, of one depth, and of free resolutions, from start to report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esm_host import Settings, load_run, profile
from esm_host.cli.app import app
from esm_host.errors import UsageError
from esm_host.sources.registry import describe
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_models.architecture import Architecture
from esm_models.errors import InvalidSpaceError
from esm_protos.messages import MeasureSpec
from tests.host.fake_campaign import latency

SMALL = Settings(
    "any",
    initial=15,
    max_models=15,
    block_size=5,
    folds=2,
    predictor="ridge",
    spec=MeasureSpec(runs=5),
    verify=0,
    sampling="balanced",
)


def esm_host(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module", params=["nasbench201", "ofa"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign on a made-up device."""
    run = tmp_path_factory.mktemp("campaign") / request.param
    profiler = FakeProfiler(latency, noise=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "connect", lambda device: profiler)
        profile(replace(SMALL, space=request.param), run)
    return run


def test_measurements_show_words_and_resolutions(finished: Path) -> None:
    run = load_run(finished)
    frame = run.measurements()
    assert len(frame) == 15
    assert frame["error_percent"].notna().all()
    if run.space.name == "nasbench201":
        words = run.space.features[0].values
        counts = frame[[f"operation_{word}" for word in words]]
        assert (counts.sum(axis=1) == 6).all()
        first = frame.iloc[0]
        convolutions = sum(
            int((part.partition("*")[0]) if "*" in part else 1)
            for part in first["architecture"].split()
            if part.endswith("nor_conv_3x3")
        )
        assert first["operation_nor_conv_3x3"] == convolutions
        assert not {"mean_operation", "resolution"} & set(frame.columns)
        assert set(frame["bin"]) == {"6"}
    else:
        assert frame["resolution"].between(128, 224).all()
        assert frame["resolution"].nunique() > 3
        assert frame["mean_expansion"].between(3, 6).all()
        shown = frame["architecture"].str.partition(" px: ")[0].astype(int)
        assert (shown == frame["resolution"]).all()
        assert set(frame["bin"]) == {"10-12", "13-14", "15-16", "17-18", "19-20"}


def test_predictions_show_resolutions(finished: Path, tmp_path: Path) -> None:
    free = finished.name == "ofa"
    title, *lines = esm_host("predict", finished, "--sample", 3).splitlines()
    assert title.split() == ["latency_ms", "blocks", "architecture"]
    data = json.loads(esm_host("predict", finished, "--sample", 3, "--json", "-"))
    for line, result in zip(lines, data["results"], strict=True):
        architecture = Architecture.from_json(result["architecture"])
        _, blocks, short = line.split(maxsplit=2)
        assert int(blocks) == architecture.depth
        assert short.startswith(f"{architecture.resolution} px: ") == free
        assert Architecture.from_text(architecture.space, short) == architecture
    shorts = [line.split(maxsplit=2)[2] for line in lines]
    (tmp_path / "given.json").write_text(json.dumps(data))
    (tmp_path / "given.txt").write_text("\n".join(shorts))
    for given in (shorts, ["-a", tmp_path / "given.json"], ["-a", tmp_path / "given.txt"]):
        again = json.loads(esm_host("predict", finished, *given, "--json", "-"))
        assert again["results"] == data["results"]


def test_the_report_shows_words_and_resolutions(finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    esm_host("report", finished, "--output", page)
    text = page.read_text()
    if finished.name == "ofa":
        assert "Error by resolution (pixels)" in text
        assert "Error by number of blocks" in text
        assert " px: " in text
    else:
        assert "Error by number of nor_conv_3x3 blocks" in text
        assert "mean operation" not in text
        assert "Error by number of blocks" not in text, "all have six"


def test_a_resolution_that_is_given_holds_for_all(tmp_path: Path) -> None:
    settings = Settings("any", space="ofa", resolution=160)
    assert settings.search_space().settings()["resolution"] == 160
    assert Settings("any", space="ofa").search_space().settings()["resolution"] == "free"
    assert Settings("any", space="fbnet").search_space().resolution == 32
    assert Settings("any").search_space().resolution == 224
    again = Settings.from_json(json.loads(json.dumps(settings.to_json())))
    assert again == settings


def test_int8_is_a_setting_of_campaigns() -> None:
    settings = Settings("any", space="fbnet", dtype="int8")
    assert settings.search_space().settings()["dtype"] == "int8"
    assert describe(settings.search_space()) == "fbnet, int8"
    stored = json.loads(json.dumps(settings.to_json()))
    assert Settings.from_json(stored) == settings
    del stored["dtype"]  # a campaign from before there was a choice
    assert Settings.from_json(stored) == replace(settings, dtype="float32")


def test_a_space_of_ones_own_need_not_know_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from esm_models.spaces.resnet import ResNetSpace\n"
        "class Own(ResNetSpace):\n"
        "    def __init__(self, resolution=None, width_mult=1.0, batch=1):\n"
        "        super().__init__(resolution, width_mult, batch)\n"
    )
    settings = Settings("any", space=f"{path}:Own", resolution=32)
    assert settings.search_space().settings()["resolution"] == 32
    with pytest.raises(InvalidSpaceError, match=r"cannot be built: .*dtype"):
        replace(settings, dtype="int8").search_space()


@pytest.mark.parametrize(
    ("space", "bins"),
    [("resnet", 5), ("mobilenetv3", 5), ("ofa", 5), ("nasbench201", 1), ("fbnet", 1)],
)
def test_bins_by_default(space: str, bins: int) -> None:
    settings = Settings("any", space=space)
    assert settings.bins is None
    assert Settings.from_json(settings.to_json()).bins is None
    assert settings.depth_bins(settings.search_space()).count == bins


def test_more_bins_than_depths_are_refused_where_asked_for() -> None:
    settings = Settings("any", space="nasbench201", bins=2)
    with pytest.raises(UsageError, match=r"^bins 2 is impossible: .* give 1 to 1"):
        settings.depth_bins(settings.search_space())


def test_an_architecture_on_one_line_begins_with_its_resolution() -> None:
    ofa = Architecture("ofa", (("k3e3", "k3e3"), ("k7e6",)), 160)
    assert ofa.to_text() == "160 px: 2*k3e3 | k7e6"
    cell = Architecture("nasbench201", (("none", "none", "skip_connect"),))
    assert cell.to_text() == "2*none skip_connect"
