"""What a model was fed, in words."""

from esm_host.timing.fed import fed_text


def test_inputs_that_are_alike_are_said_together() -> None:
    assert fed_text([("x", "float32", (1, 3, 8, 8))]) == "x 1x3x8x8 float32"
    tokens = [("ids", "int64", [1, 128]), ("size", "float32", []), ("mask", "int64", [1, 128])]
    assert fed_text(tokens) == "ids, mask 1x128 int64; size scalar float32"
    assert fed_text([]) == ""


def test_many_inputs_are_counted() -> None:
    past = [(f"past_{n}", "float32", (1, 4, n // 6, 8)) for n in range(60)]
    assert fed_text(past, most=2) == (
        "past_0, past_1, past_2 and 3 more 1x4x0x8 float32; "
        "past_6, past_7, past_8 and 3 more 1x4x1x8 float32; and 48 more"
    )
