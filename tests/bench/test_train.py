"""The training benchmark's two sides compute the same, or its ratio would mean nothing."""

import train


def test_both_sides_agree() -> None:
    case = train.build_case(train.Options(model="tiny", tokens=600))
    assert len(case.samples) > 2
    loss, gradient = train.agreement(case)
    assert loss < 1e-5 and gradient < 1e-4
