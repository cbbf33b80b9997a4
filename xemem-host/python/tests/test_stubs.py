"""The stubs name what there is, with its parameters."""

import ast
import inspect
import pathlib

import pytest

import xemem
from xemem import _native

STUBS = ast.parse(
    (pathlib.Path(xemem.__file__).parent / "_native.pyi").read_text()
)


def members(name):
    """Documented members of a class in the stubs."""
    [found] = [
        node
        for node in STUBS.body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    return {node.name: node for node in found.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", ["Stream", "Snapshot", "Variable"])
def test_a_class_has_the_members_of_its_stub(name):
    real = {key for key in vars(getattr(_native, name)) if not key.startswith("_")}
    stubbed = {key for key in members(name) if not key.startswith("_")}
    assert real == stubbed
    for key, node in members(name).items():
        if not key.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{key} has no docstring"


def test_parameters_are_those_of_the_stubs():
    [attach] = [
        node
        for node in STUBS.body
        if isinstance(node, ast.FunctionDef) and node.name == "attach"
    ]
    named = [argument.arg for argument in attach.args.args + attach.args.kwonlyargs]
    assert named == list(inspect.signature(xemem.attach).parameters)
    for name in ("Stream", "Snapshot"):
        for key, node in members(name).items():
            real = vars(getattr(_native, name))[key]
            if key.startswith("_") or inspect.isgetsetdescriptor(real):
                continue
            named = [argument.arg for argument in node.args.args]
            if node.args.vararg:
                named.append(node.args.vararg.arg)
            assert named == list(inspect.signature(real).parameters), f"{name}.{key}"


def test_the_package_is_typed_and_exports_what_it_says():
    folder = pathlib.Path(xemem.__file__).parent
    assert (folder / "py.typed").exists()
    for name in xemem.__all__:
        assert getattr(xemem, name).__doc__, name
