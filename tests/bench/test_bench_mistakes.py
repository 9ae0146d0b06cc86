"""What a user may give wrong to any bench: one line each, before anything is measured."""

import pytest

from tests.bench.conftest import Command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("losses --size 21x321", ["size '21x321'", "BxCxHxW"]),
        ("losses --size 2x21x321x321x1", ["BxCxHxW"]),
        ("losses --size 2x21xax321", ["BxCxHxW"]),
        ("losses --size 2x21x-3x321", ["BxCxHxW"]),
        ("losses --size 2x21x0x321", ["size '2x21x0x321'", "may be 0"]),
        ("losses --size 2x1x32x32", ["size '2x1x32x32'", "at least 2 classes"]),
        ("losses --size 999999x21x99999x99999 --device cpu", ["GiB", "--size"]),
        ("losses --size 2x3x8x8 --size 2x3", ["size '2x3'"]),
        ("losses --device tpu", ["device 'tpu'", "expected auto, cpu, cuda"]),
        ("losses --device cuda:99", ["CUDA devices"]),
        ("losses --json --markdown", ["--json", "--markdown"]),
        ("losses --figure growth.gif", ["--figure growth.gif", ".pdf, .png or .svg"]),
        ("losses --figure no/growth.pdf", ["--figure no/growth.pdf", "no folder no"]),
        ("training --size 176x240", ["size '176x240'", "BxHxW"]),
        ("training --size 4x3x3x176x240", ["BxHxW"]),
        ("training --size 4x-8x16", ["BxHxW"]),
        ("training --size 1x176x240", ["size '1x176x240'", "at least 2 images"]),
        ("training --size 2x255x64x96", ["needs 2 to 254 classes"]),
        ("training --size 4x100x240", ["size '4x100x240'", "multiples of 8"]),
        ("training --size 4x0x240", ["multiples of 8"]),
        ("training --size 4x8x8", ["not both 8"]),
        ("training --size 999x99992x99992 --device cpu", ["GiB", "--size"]),
        ("training --network deeplab-v2 --size 2x96x96", ["size '2x96x96'", "8 n + 1"]),
        ("training --network deeplab-v2 --size 0x97x97", ["a batch has at least 1"]),
        ("validation nothing --device cpu", ["nothing", "experiment"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    bench: Command, arguments: str, words: list[str]
) -> None:
    code, out, err = bench(arguments)
    assert code == 2, err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert out == ""
    for word in words:
        assert word in err
