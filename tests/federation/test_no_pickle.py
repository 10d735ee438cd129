"""Nothing that a stranger sends is ever unpickled: watched by Python's own audit events."""

import subprocess
import sys

import pytest

# In a process of its own: an audit hook cannot be taken away again.
_WATCHED = """
import io, os, pickle, sys
import numpy as np
from flwr.app import Array, ArrayRecord, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from csg_core.payload import PayloadError, decode
from federation.messages import TrainReport, payload_in, reply
from server.grid import read
from tests.fuzz.__main__ import HERE
from tests.fuzz.doors import DOORS, codec, label, mended

class Bad:
    def __reduce__(self):
        return os.mkdir, (sys.argv[1],)

stream, objects = io.BytesIO(), np.array([Bad()], dtype=object)
np.save(stream, objects, allow_pickle=True)
bombs = {"pickle": pickle.dumps(Bad()), "npy": stream.getvalue()}
report = TrainReport(partition=1, examples=9, train_loss=2.0, loss_before=2.5, loss_after=1.5,
                     seconds=3.0)
about = dict(run_id=1, message_id="", src_node_id=11, dst_node_id=1, group_id="1", ttl=9.0,
             reply_to_message_id="asked", created_at=1.0, message_type="train")
seen = []
watched = ("pickle.find_class", "os.mkdir", "os.system", "subprocess.Popen", "exec", "compile")
sys.addaudithook(lambda event, _: seen.append(event) if event in watched else None)

for door, enter in DOORS.items():
    for file in sorted((HERE / "corpus" / door).iterdir()):
        enter(file.read_bytes())
tried = 0
contents = []
for data in bombs.values():
    contents.append(reply(data, report))
    for stype in ("numpy.ndarray", "csg-fl"):
        array = Array(dtype="object", shape=(1,), stype=stype, data=data)
        contents.append(RecordDict({**reply(b"", report), "a": ArrayRecord({"payload": array})}))
for content in contents:
    sent = make_message(Metadata(**about), content=content)
    root = sent.object_id
    parts = {name: part.deflate() for name, part in get_all_nested_objects(sent).items()}
    found = read(Metadata(**{**about, "message_id": root}), parts, 10_000)
    try:
        payload = payload_in(found.content)
        for bytes_ in (payload, mended(payload)):
            try:
                decode(bytes_, label(), codec(0))
                raise AssertionError("was taken")
            except PayloadError:
                tried += 1
    except PayloadError:
        tried += 1
assert tried == 8, tried
assert not seen, seen
pickle.loads(bombs["pickle"])  # and the hook would have seen it
assert seen == ["pickle.find_class", "os.mkdir"], seen
"""


@pytest.mark.slow
def test_bytes_of_strangers_are_never_unpickled(tmp_path):
    made = tmp_path / "made-by-the-pickle"
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, str(made)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert made.is_dir(), "the pickle works when it is unpickled, at the very end"
