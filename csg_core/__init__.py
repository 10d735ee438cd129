"""Generated filters for any CNN (Omidvar et al., "Associative Convolutional Layers", 2021).

A small shared network, the Convolutional Slice Generator, makes every convolution kernel of a CNN
from short code vectors; only the generator, the codes and the few other tensors train and travel.
"""

# The method
from csg_core.conversion import ConversionReport as ConversionReport
from csg_core.conversion import Left as Left
from csg_core.conversion import Replaced as Replaced
from csg_core.conversion import generate_filters as generate_filters
from csg_core.convolution import GeneratedConv2d as GeneratedConv2d

# What travels
from csg_core.entries import GROUPS as GROUPS
from csg_core.entries import Entry as Entry
from csg_core.entries import Manifest as Manifest
from csg_core.exchange import exchanged as exchanged
from csg_core.exchange import manifest as manifest
from csg_core.exchange import pack as pack
from csg_core.exchange import split as split
from csg_core.exchange import unpack as unpack

# Out of the method again
from csg_core.export import extra_in as extra_in
from csg_core.export import from_safetensors as from_safetensors
from csg_core.export import to_onnx as to_onnx
from csg_core.export import to_safetensors as to_safetensors
from csg_core.folding import fold as fold
from csg_core.generator import SliceGenerator as SliceGenerator
from csg_core.generator import paper_std as paper_std
from csg_core.modules import count_trainable as count_trainable
from csg_core.modules import generated as generated
from csg_core.modules import generators as generators
from csg_core.modules import refresh as refresh
from csg_core.modules import unwrap as unwrap

# Networks by name
from csg_core.networks import NETWORKS as NETWORKS
from csg_core.networks import dense_network as dense_network
from csg_core.released import from_released as from_released
from csg_core.released import is_released as is_released
from csg_core.spec import ModelSpec as ModelSpec
from csg_core.spec import build as build
from csg_core.spec import restore as restore
