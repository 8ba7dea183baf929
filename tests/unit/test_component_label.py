"""The label of components as they really are (tencenthub-facts B2)."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.component_label import LABEL, read_label

REAL = (
    '{"description": "build   with maven", "input": [ {"name":"CMD","desc":"必填, command"},'
    ' {"name":"BUILD_WORKDIR","default":".","desc":"非必填, where"}, {"name":"FLAG","default":true,"desc":"optional, x"},'
    ' {"name":"LIST","default":["a","b"]}, {"name":"N","default":3,"desc":"something"} ],'
    ' "output": [ {"name":"IMAGE","desc":"the \\"image\\""} ]}'
)


def test_a_real_label():
    label = read_label({LABEL: REAL})
    assert label.description == "build with maven"
    assert [(each.name, each.default, each.required) for each in label.inputs] == [
        ("CMD", None, True), ("BUILD_WORKDIR", ".", False), ("FLAG", "true", False), ("LIST", "a", None), ("N", "3", None),
    ]  # fmt: skip
    assert label.outputs[0].description == 'the "image"'
    assert label.defaults == {"BUILD_WORKDIR": ".", "FLAG": "true", "LIST": "a", "N": "3"}
    assert not label.warnings


def test_an_image_without_the_label_is_no_component():
    assert read_label({"other": "x"}) is None
    assert read_label(None) is None


def test_the_documented_spelling_is_read_too():
    assert read_label({LABEL: '{"desc": "d"}'}).description == "d"


@pytest.mark.parametrize("text", ['{"input": [{"name": "A}', "[]", "", "null", "[" * 100000])
def test_a_broken_label_is_a_warning_and_shown_raw(text):
    label = read_label({LABEL: text})
    assert label.warnings
    assert label.raw == text


def test_bad_names_are_left_out_with_a_warning():
    label = read_label({LABEL: json.dumps({"input": [{"name": "a-b"}, {"desc": "x"}, 7, "PLAIN"], "output": {}})})
    assert [each.name for each in label.inputs] == ["PLAIN"]
    assert len(label.warnings) == 4


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["input", "output", "name", "desc", "default", "description"]), inner)
    ),
)


@given(_JSON | st.text())
def test_nothing_raises(value):
    read_label({LABEL: json.dumps(value)})
    read_label({LABEL: value})
