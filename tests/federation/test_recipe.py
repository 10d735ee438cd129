"""Recipes say everything, and a mistake in one is named in one line."""

import tomllib

import pytest

from federation.recipe import Recipe, RecipeError, recipe_of
from federation.recipe_file import read_recipe


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"nmae": 1}}, r"model.nmae is unknown; \[model\] has name"),
        ({"train": {"lr": -1}}, r"train.lr = -1: .* greater than 0"),
        ({"train": {"lr": float("nan")}}, r"train.lr"),
        ({"foo": {}}, "foo is unknown; a recipe has model"),
        ({"wire": {"uplink": "zip"}}, "use one of fp32, fp32z"),
        ({"train": {"clients_per_round": 30}}, "clients_per_round 30 is more than data.clients 10"),
        ({"server": {"min_clients": 11}}, "min_clients 11 is more than the cohort of 10"),
        ({"server": {"strategy": "x"}}, "server.strategy = 'x': Input should be 'fedavg'"),
        ({"model": {"name": "r"}}, "model.name 'r' is unknown; use one of resnet20"),
        ({"model": {"code_size": -3}}, "code_size -3 cannot be"),
        ({"train": {"batch_norm": "local"}}, "set data.holdout"),
        ({"train": {"rounds": True}}, "train.rounds = True: .* valid integer"),
        ({"server": {"round_timeout": 1e18}}, "server.round_timeout = 1e.18: .* 2592000"),
        ({"run": {"superlink": "host"}}, "run.superlink = 'host': give HOST:PORT, as fl"),
        ({"run": {"superlink": ""}}, "run.superlink = '': give HOST:PORT"),
        ({"run": {"superlink": "host:0"}}, "run.superlink = 'host:0': give HOST:PORT"),
        ({"data": "x"}, r"data = 'x': give a table, as \[data\] with its keys below it"),
        ({"model": "x"}, r"model = 'x': give a table"),
        ({"run": {"superlink": "host:8000"}}, "goes with run.engine=flower; set that too"),
        ({"run": {"cohort": 0}}, "run.cohort = 0: .* greater than or equal to 1"),
        ({"run": {"cohort": 2, "workers": 0}}, "run.cohort 2 .* run.workers is 0; leave one"),
        ({"run": {"cohort": 2, "engine": "flower"}}, "run.cohort 2 goes with run.engine=local"),
        (
            {"run": {"cohort": 2, "client_app": "mine:app"}},
            "run.cohort 2 .* run.client_app is 'mine:app'; leave one",
        ),
        (
            {"wire": {"uplink": "ecsq:stp=1"}},
            "wire.uplink = .* ecsq takes step, codes, fine, dct",
        ),
        (
            {"wire": {"uplink": "fp16; codes=uniform:bits=2"}},
            "uplink 'fp16; codes=uniform:bits=2': with feedback what it leaves out grows to many "
            "updates; add nearest=true, or set wire.feedback=false",
        ),
        (
            {"wire": {"downlink": "uniform:bits=1", "deltas": True}},
            "downlink 'uniform:bits=1': with deltas what .*; add nearest=true, or set bits=3",
        ),
        *[({"server": {"strategy": "krum", "options": {"num_malicious_nodes": value}}},
           rf"server.options.num_malicious_nodes = {value:g}: .* {wanted}")
          for value, wanted in ((float("inf"), "finite number"), (float("nan"), "finite number"),
                                (-1, "greater than or equal to 0"))],
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_it(content, message):
    with pytest.raises(RecipeError, match=message) as caught:
        recipe_of(content, "my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wire",
    [
        {"uplink": "uniform:bits=2,nearest=true", "downlink": "uniform:bits=1,nearest=true"},
        {"uplink": "uniform:bits=1,rotate=true", "downlink": "uniform:bits=3"},
        {"uplink": "uniform:bits=2", "feedback": False},
    ],
)
def test_coarse_steps_are_taken_where_what_they_leave_out_does_not_grow(wire):
    assert recipe_of({"wire": {**wire, "deltas": True}}, "x").wire.uplink == wire["uplink"]


def test_toml_and_json_bring_a_recipe_back():
    recipe = recipe_of({"data": {"alpha": 0.1}, "server": {"options": {"eta": 0.01}}}, "x")
    assert recipe_of(tomllib.loads(recipe.to_toml()), "x") == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_settings_go_over_the_file(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("[train]\nrounds = 7\n")
    recipe = read_recipe(
        path, ["train.rounds=3", "data.partition=dirichlet", "server.options.eta=0.5"]
    )
    assert (recipe.train.rounds, recipe.data.partition) == (3, "dirichlet")
    assert recipe.server.options == {"eta": 0.5}
    for wrong in ("rounds=3", "train.rounds", "train.rounds=many"):
        with pytest.raises(RecipeError):
            read_recipe(path, [wrong])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        *[(f"wire.downlink={line}", "ruins one that is sent whole; set wire.deltas=true")
          for line in ("ecsq", "ternary", "topk", "uniform:bits=2", "ecsq; norms=fp16", "none",
                       "fp16; norms=none")],
        ("data.holdout=0.1", "holdout 0.1: .* nobody would look at those images"),
        ("data.alpha=0.1", "data.alpha 0.1 goes with data.partition=dirichlet, and it is iid"),
        ("data.shards_per_client=3", "goes with data.partition=shards, and it is iid; leave it"),
        *[(f"wire.uplink={line}", "loses running statistics, or all else beside them; give them")
          for line in ("topk", "uniform:bits=4", "uniform:block=4096", "fp16; statistics=none")],
        ("wire.uplink=none", "sends nothing, so that nothing is learned; give it to single"),
        ("run.workers=4", "run.workers 4 goes with run.engine=local"),
        ("run.client_gpus=1", "run.client_gpus 1 goes with run.engine=flower; leave it"),
    ],
)  # fmt: skip
def test_what_a_run_would_pass_over_is_refused_and_old_runs_are_read(tmp_path, setting, message):
    path = tmp_path / "a.toml"
    section, key = setting.partition("=")[0].split(".")
    value = setting.partition("=")[2]
    path.write_text('[run]\nengine = "flower"\n' if key == "workers" else "")
    with pytest.raises(RecipeError, match=f"^--set: .*{message}"):
        read_recipe(path, [setting])
    number = value if section == "wire" else float(value) if "." in value else int(value)
    recipe_of({section: {key: number}}, "config.toml of a run")


@pytest.mark.parametrize("setting", ["client_cpus=2", "client_gpus=0.5", "workers=4"])
def test_settings_of_this_machine_are_none_of_a_superlinks_clients(tmp_path, setting):
    path = tmp_path / "a.toml"
    path.write_text('[run]\nengine = "flower"\nsuperlink = "host:8000"\n')
    key, _, value = setting.partition("=")
    with pytest.raises(RecipeError, match=rf"^--set: run.{key} {value} .* 'host:8000'; leave it"):
        read_recipe(path, [f"run.{setting}"])
    assert read_recipe(path).run.superlink == "host:8000"


def test_a_mistake_in_a_setting_is_not_put_down_to_the_file(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("[train]\nrounds = 15\n")
    with pytest.raises(RecipeError, match=r"^--set: train.rounds = 'abc'"):
        read_recipe(path, ["train.rounds=abc"])
    path.write_text("[train]\nlr = -1\n")
    with pytest.raises(RecipeError, match=rf"^{path}: train.lr"):
        read_recipe(path, ["train.rounds=3"])
    path.write_text("[data]\nalpha = 0.1\npartition = 'dirichlet'\n")
    for wrong in ("trian.rounds=5", "model.slice_size=-1", "train..rounds=5",
                  "train.batch_norm=local", "data.shards_per_client=3",
                  "train.lr.x=5"):  # fmt: skip
        with pytest.raises(RecipeError, match=r"^--set"):
            read_recipe(path, [wrong])
    path.write_text("")
    for name in ("2026-11-27", "123", "12:00:00"):
        assert read_recipe(path, [f"run.dir={name}"]).run.dir == name


def test_files_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("[train\n")
    with pytest.raises(RecipeError, match="is no TOML"):
        read_recipe(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("settings", "usual"),
    [
        (["data.partition=iid"], {"data": {"alpha": 0.5}, "train": {"generator_lr": 0.3}}),
        (["model.parametrization=dense"], {"train": {"generator_lr": 1.0},
                                           "wire": {"generator_until": None}}),
    ],
)  # fmt: skip
def test_what_a_setting_makes_useless_of_a_file_has_its_default(tmp_path, settings, usual):
    path, again = tmp_path / "r.toml", tmp_path / "again.toml"
    path.write_text(
        "[data]\nalpha = 0.1\npartition = 'dirichlet'\n[train]\ngenerator_lr = 0.3\n"
        "[wire]\ndeltas = true\ngenerator_until = 4\n"
    )
    recipe = read_recipe(path, settings)
    for section, keys in usual.items():
        assert {key: getattr(getattr(recipe, section), key) for key in keys} == keys
    again.write_text(recipe.to_toml())
    assert read_recipe(again) == recipe
    wrong = "data.alpha=0.5" if "data" in usual else "wire.generator_every=1"  # as by default
    with pytest.raises(RecipeError, match="leave it out"):
        read_recipe(path, [*settings, wrong])


def test_names_that_look_like_numbers_stay_as_they_are(tmp_path):
    (path := tmp_path / "r.toml").write_text("")
    for name in ("0.10", "2024_01", "1e5", "2026-01-31", "true"):
        assert read_recipe(path, [f"run.dir={name}"]).run.dir == name
    assert read_recipe(path, ["run.dir='0.10'"]).run.dir == "0.10"


def test_a_table_may_be_set_whole(tmp_path):
    (path := tmp_path / "r.toml").write_text("")
    settings = ["server.strategy=fedavgm", "server.options={server_momentum=0.3}"]
    assert read_recipe(path, settings).server.options == {"server_momentum": 0.3}
    with pytest.raises(RecipeError, match=r"server\.options = 3: Input should be a valid dict"):
        read_recipe(path, ["server.options=3"])


def test_digits_lie_in_no_folder(tmp_path):
    (path := tmp_path / "r.toml").write_text('[data]\nname = "digits"\n')
    with pytest.raises(
        RecipeError, match=r"data\.dir 'here' is of CIFAR-10, and data\.name is dig"
    ):
        read_recipe(path, ["data.dir=here"])
    assert read_recipe(path, ["data.dir=here", "data.name=cifar10"]).data.dir == "here"


def test_a_learned_generator_has_no_seed_of_its_own(tmp_path):
    (path := tmp_path / "r.toml").write_text("")
    with pytest.raises(
        RecipeError, match=r"generator_seed .*run\.seed draws a learned one; leave it"
    ):
        read_recipe(path, ["model.generator_seed=3"])
    frozen = read_recipe(path, ["model.generator_seed=3", "model.generator=frozen"])
    assert frozen.model.generator_seed == 3


def test_a_byte_order_mark_is_none_of_the_file(tmp_path):
    path = tmp_path / "r.toml"
    path.write_bytes(b"\xef\xbb\xbf[train]\nrounds = 3\n")
    assert read_recipe(path).train.rounds == 3


@pytest.mark.parametrize("model", ["parametrization='dense'", "generator='frozen'"])
@pytest.mark.parametrize(
    "settings", [["train.generator_lr=0.3"], ["wire.deltas=true", "wire.generator_every=2"]]
)
def test_what_is_for_a_learned_generator_needs_one(tmp_path, model, settings):
    path = tmp_path / "r.toml"
    path.write_text(f"[model]\n{model}\n")
    with pytest.raises(RecipeError, match="for a learned generator, and there is none; leave"):
        read_recipe(path, settings)
    path.write_text("")
    read_recipe(path, settings)
    assert read_recipe(path, ["train.rounds=2"], dense=True).train.generator_lr == 1.0


def test_a_dense_recipe_may_say_what_its_generated_twin_would_be(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("[model]\nparametrization = 'dense'\ncode_size = 36\ngenerator = 'frozen'\n")
    assert read_recipe(path) == recipe_of({"model": {"parametrization": "dense"}}, "x")
    twin = read_recipe(path, ["model.parametrization=csg"]).model
    assert (twin.code_size, twin.generator) == (36, "frozen")
    with pytest.raises(RecipeError, match=r"--set: model\.code_size 24 is of generated filters"):
        read_recipe(path, ["model.code_size=24"])


def test_a_quorum_follows_the_cohort():
    assert recipe_of({"data": {"clients": 9}}, "x").quorum == 4
    assert recipe_of({"data": {"clients": 1}}, "x").quorum == 1


def test_schedules_over_rounds():
    def factors(schedule):
        train = recipe_of({"train": {"rounds": 8, "lr_schedule": schedule}}, "x").train
        return [round(train.factor(r), 3) for r in range(1, 9)]

    assert factors("constant") == [1.0] * 8
    assert factors("step") == [1.0] * 4 + [0.1] * 2 + [0.01] * 2
    cosine = factors("cosine")
    assert cosine[0] == 1.0
    assert cosine[4] == 0.5
    assert cosine == sorted(cosine, reverse=True)


def test_the_dense_twin_is_plain_fedavg_of_the_same_work():
    server = {"strategy": "fedavgm", "options": {"server_momentum": 0.5}, "min_clients": 3,
              "start_from": "best.safetensors", "start_with": "generator"}  # fmt: skip
    wire = {"uplink": "ecsq", "downlink": "ecsq", "deltas": True}
    train = {"clip_norm": 1.0, "lr": 0.05, "batch_size": 16}
    recipe = recipe_of(
        {"model": {"width": 1.5}, "server": server, "wire": wire, "train": train}, "x"
    )
    wanted = {"model": {"width": 1.5, "parametrization": "dense"}, "server": {"min_clients": 3},
              "train": {"lr": 0.05, "batch_size": 16}}  # fmt: skip
    assert recipe.dense_twin() == recipe_of(wanted, "x")
