"""The ServerApp around the rounds."""

import pytest
from flwr.app import Context, RecordDict

from federation.code import CODE, CodeError
from federation.messages import RECIPE
from server.app import make_app
from tests.server.replies import Nodes


@pytest.mark.parametrize("code", [{}, {CODE: "csg-fl 0.0.9 (0123456789ab)"}])
def test_a_run_of_other_code_is_refused(tiny, tmp_path, code):
    recipe = tiny(run={"dir": str(tmp_path / "run")})
    context = Context(1, 1, {}, RecordDict(), {RECIPE: recipe.model_dump_json(), **code})
    with pytest.raises(CodeError, match="install the same csg-fl"):
        make_app()(Nodes(), context)
    assert not (tmp_path / "run").exists()
