"""The ClientApp around local training."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image

from client.app import Worker, _interface, make_app
from federation.code import CODE, CodeError, code_identity
from federation.messages import RECIPE, instruction


def _context(recipe, code=None, **node):
    run = {RECIPE: recipe.model_dump_json(), CODE: code or code_identity()}
    node = {"partition-id": 0, **{key.replace("_", "-"): value for key, value in node.items()}}
    return Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=run)


def _message(kind="train", **config):
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    return Message(instruction(b"", 3, ConfigRecord(config)), dst_node_id=1, message_type=kind)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_run_of_other_code_is_refused(tiny, kind):
    with pytest.raises(CodeError, match="install the same csg-fl"):
        make_app()(_message(kind), _context(tiny(), "csg-fl 0.0.9 (0123456789ab)"))


def test_a_client_trains_with_the_servers_mu(tiny):
    worker, context = Worker(), _context(tiny())
    assert worker.job(_message(**{"proximal-mu": 0.25}), context)[1].proximal_mu == 0.25
    assert worker.job(_message(), context)[1].proximal_mu == 0.0


def _picture(path, grey):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((32, 32, 3), grey, np.uint8)).save(path)
    return path


GREYS = {"environment": 10, "recipe": 20, "node": 30, "own": 40}


@pytest.mark.parametrize(
    ("recipes", "node", "used"),
    [
        (None, {}, "environment"),
        ("recipe", {}, "recipe"),
        ("recipe", {"data_dir": "node"}, "node"),
        ("recipe", {"data_dir": "node", "data_folder": "own"}, "own"),
    ],
    ids=["environment", "recipe", "data-dir", "data-folder"],
)
def test_a_client_takes_its_images_from_the_nearest_place_named(
    tiny, tmp_path, monkeypatch, recipes, node, used
):
    """Of pictures of its own, the node's copy, the recipe's, and the environment's."""
    for name, grey in GREYS.items():
        picture = _picture(tmp_path / name / "cat" / "0.png", grey).read_bytes()
        images = pa.table({"img": 4 * [{"bytes": picture}], "label": [0, 1, 2, 3]})
        pq.write_table(images, tmp_path / name / "train.parquet")
    monkeypatch.setenv("CSG_DATA_DIR", str(tmp_path / "environment"))
    folder = None if recipes is None else str(tmp_path / recipes)
    recipe = tiny(data={"name": "cifar10", "dir": folder, "clients": 2, "images": None})
    places = {key: str(tmp_path / name) for key, name in node.items()}
    _, shard, _ = Worker().ready(_context(recipe, **places))
    assert shard.images.images.unique().tolist() == [GREYS[used]]
    assert len(shard.train_rows) == (1 if used == "own" else 2)


def test_a_client_whose_interface_has_gone_counts_nothing_and_goes_on(tiny, caplog):
    """Docker gives a container that is connected to its network again an eth1 for its eth0."""
    recipe = tiny(run={"engine": "flower", "superlink": "127.0.0.1:8000"})
    gone = SimpleNamespace(node_config={"interface": "gone0"})
    assert _interface(recipe, gone) is None
    assert "interface 'gone0' is not there" in caplog.text
    there = SimpleNamespace(node_config={"interface": "lo"})
    assert _interface(recipe, there).name == "lo"
