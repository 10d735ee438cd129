"""What the federated study compares, as settings of recipes: shards, networks and codecs."""

from itertools import product

# A tenth of the images, with which many methods can be compared in minutes each, and three tenths.
_SMALL = ("data.images=5000", "train.batch_size=32", "run.eval_every=2")
_THREE_TENTHS = "data.images=15000"
# The images, how ten clients share them (or fifty, of which ten train in a round), in what batches
# and for how many rounds they train on them.
PARTITIONS: dict[str, tuple[str, ...]] = {
    "iid": ("data.partition=iid",),
    "dirichlet": ("data.partition=dirichlet",),
    "dirichlet50": ("data.partition=dirichlet", "data.clients=50", "train.clients_per_round=10"),
    "skewed": ("data.partition=dirichlet", "data.alpha=0.1"),
    "iid_b16": ("data.partition=iid", "train.batch_size=16"),
    "iid_long": ("data.partition=iid", "train.rounds=100", "run.eval_every=5"),
    "middle": ("data.partition=dirichlet", _THREE_TENTHS),
    "middle_b16": ("data.partition=dirichlet", _THREE_TENTHS, "train.batch_size=16"),
    "small": ("data.partition=dirichlet", *_SMALL),
    "small_skewed": ("data.partition=dirichlet", "data.alpha=0.1", *_SMALL),
}

# Whose generator csg-donated begins with: a ResNet-32 that was trained on handwritten digits. Its
# run lies beside the study's.
DONOR = "donor/checkpoints/best.safetensors"
DONATES = ("model.name=resnet32", "data.name=digits", "data.clients=5", "train.rounds=15",
           "train.batch_size=32", "train.augment=false")  # fmt: skip

NETWORKS: dict[str, tuple[str, ...]] = {
    "dense": ("model.parametrization=dense",),
    "csg": (),
    # a dense network of about as many parameters as csg has
    "dense-narrow": ("model.parametrization=dense", "model.width=0.6875"),
    "csg-slow": ("train.generator_lr=0.3",),
    "csg-small": ("model.code_size=36",),
    # more channels with shorter codes: 67,042 parameters for 115,426
    "csg-wide": ("model.width=1.5", "model.code_size=36"),
    # as many channels with the usual codes, for a generator that never travels
    "csg-wide-long": ("model.width=1.5",),
    "csg-frozen": ("model.generator=frozen", "model.code_size=144"),
    "csg-donated": (f"server.start_from={DONOR}", "server.start_with=generator"),
    "fedpara": ("model.parametrization=fedpara",),
    "flocora": ("model.parametrization=flocora", "model.options.rank=8"),
    "flocora-32": ("model.parametrization=flocora", "model.options.rank=32"),
    "dense32": ("model.parametrization=dense", "model.name=resnet32"),
    "dense56": ("model.parametrization=dense", "model.name=resnet56"),
    # six channels: half as many parameters again as csg56-small
    "dense56-narrow": ("model.parametrization=dense", "model.name=resnet56", "model.width=0.375"),
    "csg56": ("model.name=resnet56",),
    "csg56-small": ("model.name=resnet56", "model.code_size=36"),
    # smaller slices with codes as short for their size: 42,010 parameters for 82,798
    "csg56-tiny": ("model.name=resnet56", "model.slice_size=8", "model.code_size=18"),
}
_CLIPPED = ("dense", "csg", "dense-narrow", "csg-small", "csg-wide", "csg-wide-long",
            "dense32", "dense56", "dense56-narrow", "csg56", "csg56-small",
            "csg56-tiny")  # fmt: skip
_CLIP = ("train.clip_norm=1",)
NETWORKS |= {f"{name}-clip": NETWORKS[name] + _CLIP for name in _CLIPPED}
# the server goes on by half of its last step (Hsu et al., "Measuring the effects of non-identical
# data distribution", 2019)
_MOMENTUM = ("server.strategy=fedavgm", "server.options.server_momentum=0.5")
_WITH_MOMENTUM = ("dense", "dense-clip", "dense-narrow-clip", "csg-wide-clip",
                  "csg-wide-long-clip", "dense56-clip", "dense56-narrow-clip", "csg56-clip",
                  "csg56-small-clip", "csg56-tiny-clip")  # fmt: skip
NETWORKS |= {f"{name}-momentum": NETWORKS[name] + _MOMENTUM for name in _WITH_MOMENTUM}


def _both(codec: str, *more: str) -> tuple[str, ...]:
    """The same codec up and down; running statistics need finer steps than the rest, whoever's."""
    line = codec if codec.startswith("ecsq") else f"{codec}; statistics=ecsq"
    return (f"wire.uplink={line}", f"wire.downlink={line}", *more)


_DELTAS = "wire.deltas=true"
# whole models: in one scale with others, small variances would come to zero
_INT8 = "uniform:bits=8; norms=fp16; statistics=fp16"
CODECS: dict[str, tuple[str, ...]] = {
    "": (),
    "fp16": ("wire.uplink=fp16", "wire.downlink=fp16"),
    "int8": (f"wire.uplink={_INT8}", f"wire.downlink={_INT8}"),
    "int4": _both("uniform:bits=4", _DELTAS),
    "ternary": _both("ternary", _DELTAS),
    # sparse ternary compression with the authors' 1/400 in both directions, and with ten times that
    "stc": _both("topk:fraction=0.0025,ternary=true", _DELTAS),
    "stc-40": _both("topk:fraction=0.025,ternary=true", _DELTAS),
    "topk": _both("topk:fraction=0.01", _DELTAS),
    # one bit a value, turned first (DRIVE)
    "one-bit": _both("uniform:bits=1,rotate=true", _DELTAS),
    "ecsq": _both("ecsq", _DELTAS),
    "ecsq-low": _both("ecsq:step=3,codes=4", _DELTAS),
    # nearly all levels zero, as in sparse compression
    "ecsq-sparse": _both("ecsq:step=8,codes=8", _DELTAS),
    # codes in steps as fine as the generator's; kernels by place, not by frequency
    "ecsq-even": _both("ecsq:codes=1.5", _DELTAS),
    "ecsq-mid": _both("ecsq:step=1.75,codes=1.75", _DELTAS),
    "ecsq-places": _both("ecsq:dct=false", _DELTAS),
    # norms, head and statistics, which move alike at all clients, in coarser steps, most so on the
    # way up, where they are those of all else (fine=1.8 is no more than step)
    "ecsq-lean": ("wire.uplink=ecsq:fine=1.8", "wire.downlink=ecsq:fine=0.9", _DELTAS),
    "ecsq-mid-lean": (
        "wire.uplink=ecsq:step=1.75,codes=1.75,fine=1.75",
        "wire.downlink=ecsq:step=1.75,codes=1.75,fine=0.9",
        _DELTAS,
    ),
    # steps of what is not predicted, so wide that as much is left out as by ecsq-mid-lean
    "ecsq-predict": (
        "wire.uplink=ecsq:step=1.75,codes=2.2,fine=1.75",
        "wire.downlink=ecsq:step=2.05,codes=2.5,fine=1.2",
        _DELTAS,
        "wire.predict=true",
    ),
}
SCHEDULED = ("csg", "csg-donated", "csg-wide-clip-momentum", "csg-wide-long-clip-momentum")
SCHEDULES: dict[str, tuple[str, ...]] = {  # of the generator
    "ecsq-seldom": (*CODECS["ecsq"], "wire.generator_every=4"),
    "ecsq-freeze": (*CODECS["ecsq"], "wire.generator_until=5"),
    "ecsq-never": (*CODECS["ecsq"], "wire.generator_until=0"),
}
_DEPTHS = (20, 32, 56)
# Networks of the frontier, dense ones by depth and channels of the first stage, generated ones by
# depth, channels of the first stage, slice and code.
_SIZED_DENSE: dict[str, tuple[str, ...]] = {
    f"dense{depth}-{channels}": (
        "model.parametrization=dense",
        f"model.name=resnet{depth}",
        f"model.width={channels / 16}",
    )
    for depth, channels in product(_DEPTHS, (6, 8, 11, 16))
}
_SLICES = ((8, 18), (8, 36), (12, 18), (12, 36), (12, 72), (16, 72))
_SIZED_CSG: dict[str, tuple[str, ...]] = {
    f"csg{depth}-{channels}-s{slice_size}-d{code}": (
        f"model.name=resnet{depth}",
        f"model.width={channels / 16}",
        f"model.slice_size={slice_size}",
        f"model.code_size={code}",
    )
    for depth, channels, (slice_size, code) in product(_DEPTHS, (16, 24, 32), _SLICES)
}
_KNOWN = {  # networks above, which have names
    "dense20-16": "dense",
    "dense20-11": "dense-narrow",
    "dense32-16": "dense32",
    "dense56-6": "dense56-narrow",
    "dense56-16": "dense56",
    "csg20-16-s12-d72": "csg",
    "csg20-16-s12-d36": "csg-small",
    "csg20-24-s12-d36": "csg-wide",
    "csg20-24-s12-d72": "csg-wide-long",
    "csg56-16-s8-d18": "csg56-tiny",
    "csg56-16-s12-d36": "csg56-small",
    "csg56-16-s12-d72": "csg56",
}
# Networks of a frontier all have the same codec; under ecsq, dense ones are clipped and not, since
# some of them lose by it, under ecsq-predict all have the training that it was chosen with.
_SIZED = {_KNOWN.get(name, name): values for name, values in (_SIZED_DENSE | _SIZED_CSG).items()}
_RECIPE = _CLIP + _MOMENTUM + CODECS["ecsq-predict"]
_FRONTIERS: dict[str, dict[str, tuple[str, ...]]] = {
    "ecsq": {
        f"{_KNOWN.get(name, name)}-ecsq": values + CODECS["ecsq"]
        for name, values in _SIZED_DENSE.items()
    }
    | {f"{name}-clip-ecsq": values + _CLIP + CODECS["ecsq"] for name, values in _SIZED.items()},
    "ecsq-predict": {
        f"{name}-clip-momentum-ecsq-predict": values + _RECIPE for name, values in _SIZED.items()
    },
}
FRONTIERS = {f"frontier-{codec}": list(arms) for codec, arms in _FRONTIERS.items()}
# arms by name, with their network and their codec
NAMED = {
    f"{network}-{codec}".rstrip("-"): (network, codec)
    for network, codec in [*product(NETWORKS, CODECS), *product(SCHEDULED, SCHEDULES)]
}
ARMS = {
    arm: NETWORKS[network] + (CODECS | SCHEDULES)[codec] for arm, (network, codec) in NAMED.items()
}
for _arms in _FRONTIERS.values():
    ARMS |= _arms

# Those of the README, by shards.
SHORT: dict[str, tuple[str, ...]] = {
    "iid": ("csg56-small-clip-momentum-ecsq-predict", "dense56-narrow-clip-momentum-ecsq-predict",
            "dense56-clip-momentum-ecsq-predict", "dense56-clip-momentum", "dense56",
            "csg-wide-clip-momentum-ecsq-predict", "dense20-8-clip-momentum-ecsq-predict",
            "dense-narrow-clip-momentum-ecsq-predict", "dense-clip-momentum-ecsq-predict",
            "dense"),
    "iid_long": ("csg56-small-clip-momentum-ecsq-predict", "dense56"),
    "dirichlet": ("csg56-small-clip-momentum-ecsq-predict",
                  "dense56-narrow-clip-momentum-ecsq-predict", "dense56",
                  "csg-wide-clip-momentum-ecsq-predict", "dense-int4", "dense-ternary",
                  "dense-one-bit", "dense-stc", "fedpara-ecsq", "flocora-int8", "dense"),
    "skewed": ("csg56-small-clip-momentum-ecsq-predict",
               "dense56-narrow-clip-momentum-ecsq-predict", "dense56"),
}  # fmt: skip
