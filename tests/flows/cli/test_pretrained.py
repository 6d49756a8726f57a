"""Is the backbone that claims start from learnt once, known by what it was learnt from, and does it fit a student?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks import pretrained
from models import lgsa_deeplab
from tasks.deeplab.stages import DEMO_TINY
from tasks.engine.options import RunParams
from tasks.training.networks import load_into

PARAMS = dataclasses.replace(DEMO_TINY, width=4, iterations=2)


def test_it_is_learnt_once_and_fits_a_student_with_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "SOURCE", "demo-tiny")
    options = RunParams(cache=str(tmp_path), workers=0, threads=1, launch="inline", device="cpu")
    assert pretrained.find_backbone(PARAMS, options) is None
    file = pretrained.make_backbone(PARAMS, options)
    assert pretrained.find_backbone(PARAMS, options) == file
    before = file.stat()
    assert pretrained.make_backbone(PARAMS, options) == file and file.stat() == before
    assert pretrained.find_backbone(dataclasses.replace(PARAMS, iterations=3), options) is None

    student = lgsa_deeplab.build("tiny", 9, width=4)
    own = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    load_into(student, load_file(file), str(file))
    now = student.state_dict()
    changed = {name for name, tensor in own.items() if not tensor.equal(now[name])}
    assert changed and all(name.startswith("backbone.") for name in changed)
    for name, tensor in load_file(file).items():
        assert tensor.equal(now[f"backbone.{name}"]), name
