"""Codecs: how the values of a payload are written as bytes, and read back.

A codec is named in one line, as in recipes: ``fp16``, ``ecsq:step=1.5``, or, with another codec for
some groups of tensors, ``topk:fraction=0.01; norms=fp16; statistics=fp16``.
"""

from csg_core.codecs.base import Codec, CodecError, total
from csg_core.codecs.blockwise import Uniform
from csg_core.codecs.ecsq import Ecsq
from csg_core.codecs.grouped import Grouped
from csg_core.codecs.lossless import Float32Lossless
from csg_core.codecs.named import CODECS, codec_named
from csg_core.codecs.plain import Float16, Float32, Nothing
from csg_core.codecs.predicted import Predicted
from csg_core.codecs.schedule import GeneratorSchedule, without_generator
from csg_core.codecs.sparse import Ternary, TopK
from csg_core.entries import Part, Parts

__all__ = [
    "CODECS",
    "Codec",
    "CodecError",
    "Ecsq",
    "Float16",
    "Float32",
    "Float32Lossless",
    "GeneratorSchedule",
    "Grouped",
    "Nothing",
    "Part",
    "Parts",
    "Predicted",
    "Ternary",
    "TopK",
    "Uniform",
    "codec_named",
    "total",
    "without_generator",
]
