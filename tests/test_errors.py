"""Errors that the user can put right, from where they are raised to the command's exit."""

import pickle

import pytest

from wsbcn_d2.checkpoint import CheckpointError
from wsbcn_d2.data.train_loader import BadDataError, WorkerError
from wsbcn_d2.engine.trainer import NonFiniteLossError
from wsbcn_d2.errors import ConfigError, UserError, exit_with_message

ERRORS = [BadDataError, CheckpointError, ConfigError, NonFiniteLossError, UserError, WorkerError]


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_of_the_user_is_one_message_and_status_1(error):
    with pytest.raises(SystemExit) as stopped, exit_with_message("tool.py"):
        raise error("images.json: no categories")
    assert stopped.value.code == "tool.py: error: images.json: no categories"


@pytest.mark.parametrize("error", ERRORS)
def test_the_message_survives_the_way_between_processes(error):
    copy = pickle.loads(pickle.dumps(error("images.json: no categories")))
    assert type(copy) is error and str(copy) == "images.json: no categories"


def test_ctrl_c_is_status_130(capsys):
    with pytest.raises(SystemExit) as stopped, exit_with_message("tool.py"):
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "tool.py: stopped by Ctrl-C\n"


def test_a_defect_of_the_program_keeps_its_traceback():
    with pytest.raises(KeyError, match="defect"), exit_with_message("tool.py"):
        raise KeyError("defect")
