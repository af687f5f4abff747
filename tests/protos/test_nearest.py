"""Messages that refuse a name."""

import pytest

from esm_protos.nearest import unknown


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            unknown("space", "resnt", ["resnet", "ofa"]),
            "unknown space 'resnt': did you mean 'resnet'? choose resnet, ofa",
        ),
        (unknown("space", "x", ["resnet", "ofa"]), "unknown space 'x': choose resnet, ofa"),
        (
            unknown("space", "RESNET", ["resnet"]),
            "unknown space 'RESNET': did you mean 'resnet'? choose resnet",
        ),
        (unknown("task", "x", []), "unknown task 'x': there is none"),
        (
            unknown("task", "toy", ["toys"], where="of a table", choices="see the table"),
            "unknown task 'toy' of a table: did you mean 'toys'? see the table",
        ),
    ],
)
def test_a_refused_name_has_the_nearest_one_and_the_choices(message: str, expected: str) -> None:
    assert message == expected
