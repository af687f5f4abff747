"""The guide for the Raspberry Pi, as far as it can be checked without one."""

from tests.arm64.guide import PI, WORKSTATION, commands, marks


def test_every_block_of_the_guide_says_where_it_runs() -> None:
    assert marks() <= {PI, WORKSTATION, "", "toml"}, "blocks without commands have no shell's name"


def test_the_guide_starts_the_agent_last() -> None:
    *before, last = commands(PI)
    assert before[0].startswith("python3 -m venv")
    assert "esm-agent serve" in last, "it does not return: what follows it would not be run"
