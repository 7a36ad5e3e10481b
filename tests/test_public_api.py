"""`import fastssl` offers what it lists, and costs nothing."""

import subprocess
import sys

import pytest

import fastssl


def test_every_public_name_is_there():
    for name in fastssl.__all__:
        assert getattr(fastssl, name) is not None
        assert name in dir(fastssl)
    with pytest.raises(AttributeError, match="no attribute 'BertForEverything'"):
        fastssl.BertForEverything  # noqa: B018


def test_importing_is_cheap():
    code = (
        "import sys, fastssl; print([m for m in ('torch', 'numpy', 'matplotlib', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_models_need_no_plotting_and_no_peers():
    code = (
        "import sys, fastssl; fastssl.BertForPreTraining, fastssl.FillMask, fastssl.attention;"
        "print([m for m in ('matplotlib', 'transformers', 'tensorboard', 'pyarrow') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
