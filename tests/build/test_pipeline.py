"""The log messages of ``prepare``."""

import logging

import pytest

from dtrak.build.pipeline import prepare_data
from dtrak.study.folder import StudyFolder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "14 training images, 2 held out (data.holdout = 12.5 %, unless the source defines the split); 0 dup"),
        ({"holdout": 0}, "16 training images, 0 held out; 0 dup"),
    ],
)
def test_prepare_logs_the_held_out_share(fresh, caplog, monkeypatch, changes, said):
    monkeypatch.setattr(logging.getLogger("dtrak"), "propagate", True)  # the command line turns it off
    data = fresh.study.data.model_copy(update=changes)
    with caplog.at_level(logging.INFO, logger="dtrak"):
        prepare_data(StudyFolder(fresh.study.model_copy(update={"data": data})), force=True)
    assert said in caplog.text
