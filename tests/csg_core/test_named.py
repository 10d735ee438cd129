"""Codecs by the line that names them."""

import numpy as np
import pytest

from csg_core.codecs import Ecsq, TopK, Uniform, codec_named


def test_equal_codecs_are_named_alike():
    assert repr(Ecsq(step=1)) == repr(Ecsq(step=1.0))
    assert repr(TopK(fraction=np.float64(0.1))) == repr(TopK(fraction=0.1))
    with pytest.raises(ValueError, match=r"bits=4\.5: give a whole number"):
        Uniform(bits=4.5)
    with pytest.raises(ValueError, match=r"rotate=0\.5: give true or false"):
        Uniform(rotate=0.5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("zip", "'zip' is unknown; use one of fp32, fp32z, fp16"),
        ("uniform:bits=9", "bits=9: give 1 to 8"),
        ("uniform:bits=two", "bits=two: give a whole number, as 4"),
        ("uniform:rotate=1", "rotate=1: give true or false"),
        ("uniform:block=100", "power of two"),
        ("fp16:bits=2", "'bits=2' is unknown; fp16 takes no settings"),
        ("ecsq:stp=1", "'stp=1' is unknown; ecsq takes step, codes, fine, dct"),
        ("ecsq:step=0", "give 0.001 to 100"),
        ("ecsq:step=nan", "give 0.001 to 100"),
        ("ecsq:codes=1000", "codes=1000: give 0.001 to 100, as "),
        ("ecsq:fine=0", "fine=0: give 0.001 to 100, as 0.6"),
        ("topk:fraction=0", "fraction=0: give"),
        ("ecsq:step=1,step=2", "step is set twice"),
        ("ecsq; heads=fp16", "groups are generator, codes, norms, head, other, statistics"),
        ("ecsq; norms=fp16; norms=fp32", "norms has two codecs"),
        ("ecsq; norms", "is no group=codec"),
    ],
)
def test_what_is_wrong_with_a_line_is_named(line, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        codec_named(line)
