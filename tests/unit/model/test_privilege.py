"""What a config asks for, and what counts as consent to it (REF 3.3)."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.errors import InvalidParameter
from pluginsvc.model.plugin import Device, Env, Linux, Mount, Network, PluginConfig, User
from pluginsvc.model.privilege import IncorrectPrivileges, Privilege, check_privileges, required_privileges


def test_everything_in_dockers_order() -> None:
    """Each condition gives its privilege with Docker's texts, in Docker's order."""
    config = PluginConfig(
        network=Network(type="host"),
        ipc_host=True,
        pid_host=True,
        mounts=[Mount(source="/a"), Mount(source=None), Mount(source="")],
        linux=Linux(
            allow_all_devices=True,
            capabilities=["CAP_B", "CAP_A"],
            devices=[Device(path="/dev/fuse"), Device(path=None), Device(path="")],
        ),
    )
    assert msgspec.json.decode(msgspec.json.encode(required_privileges(config))) == [
        {"Name": "network", "Description": "permissions to access a network", "Value": ["host"]},
        {"Name": "host ipc namespace", "Description": "allow access to host ipc namespace", "Value": ["true"]},
        {"Name": "host pid namespace", "Description": "allow access to host pid namespace", "Value": ["true"]},
        {"Name": "mount", "Description": "host path to mount", "Value": ["/a"]},
        {"Name": "mount", "Description": "host path to mount", "Value": [""]},
        {"Name": "device", "Description": "host device to access", "Value": ["/dev/fuse"]},
        {"Name": "device", "Description": "host device to access", "Value": [""]},
        {"Name": "allow-all-devices", "Description": "allow 'rwm' access to all devices", "Value": ["true"]},
        {
            "Name": "capabilities",
            "Description": "list of additional capabilities required",
            "Value": ["CAP_B", "CAP_A"],
        },
    ]


@pytest.mark.parametrize(
    ("kind", "asked"),
    [("", False), ("null", False), ("bridge", False), ("none", True), ("host", True), ("x", True)],
)
def test_networks_that_need_consent(kind: str, *, asked: bool) -> None:
    """Every network type but nothing, null and bridge is a privilege, none included."""
    assert bool(required_privileges(PluginConfig(network=Network(type=kind)))) is asked


def test_what_is_no_privilege() -> None:
    """Propagated mount, variables, user and empty lists need no consent."""
    config = PluginConfig(
        propagated_mount="/mnt", env=[Env(name="A")], user=User(uid=1), linux=Linux(capabilities=[], devices=[])
    )
    assert required_privileges(config) == []


def p(name: str, *value: str, description: str = "") -> Privilege:
    return Privilege(name=name, value=list(value), description=description)


@pytest.mark.parametrize(
    ("required", "granted", "fine"),
    [
        pytest.param([p("a", "1"), p("b", "2")], [p("a", "1"), p("b", "2"), p("c", "3")], False, id="diff-len"),
        pytest.param([p("a", "1"), p("b", "2")], [p("a", "1")], False, id="one-missing"),
        pytest.param([p("a", "1"), p("b", "2")], [p("a", "1"), p("b", "3")], False, id="diff-value"),
        pytest.param(
            [p("a", "abc", "def"), p("b", "x", "y")],
            [p("b", "y", "x"), p("a", "def", "abc")],
            True,
            id="diff-order-but-same-value",
        ),
        pytest.param([p("a", "1")], [p("a", "1")], True, id="single-element-same"),
        pytest.param([p("a", "1")], [p("a", "2")], False, id="single-element-diff-value"),
        pytest.param(
            [p("a", "1"), p("b", "2")], [p("a", "9"), p("b", "2")], False, id="first-sorted-element-diff-value"
        ),
        pytest.param([], [], True, id="empty-privileges"),
        pytest.param([p("mount", "/a"), p("mount", "/b")], [p("mount", "/b"), p("mount", "/a")], True, id="swapped"),
        pytest.param([p("mount", "/a"), p("mount", "/b")], [p("mount", "/a"), p("mount", "/a")], False, id="doubled"),
        pytest.param([p("a", "1", "1")], [p("a", "1")], False, id="repeated-value"),
        pytest.param([p("a", "1", description="x")], [p("a", "1", description="y")], True, id="description-ignored"),
        pytest.param([p("a")], [Privilege(name="a", value=None)], True, id="null-value-is-empty"),
        pytest.param([p("A", "1")], [p("a", "1")], False, id="name-case"),
    ],
)  # fmt: skip
def test_validate_privileges(required: list[Privilege], granted: list[Privilege], *, fine: bool) -> None:
    """Consent is to exactly what is asked for, compared as multisets (upstream's TestValidatePrivileges and more)."""
    if fine:
        check_privileges(granted, required)
        return
    with pytest.raises(IncorrectPrivileges, match=r"^incorrect privileges$") as caught:
        check_privileges(granted, required)
    assert isinstance(caught.value, InvalidParameter)


@given(st.lists(st.builds(p, st.sampled_from("ab"), st.sampled_from("12")), max_size=5), st.data())
def test_order_never_matters_and_content_always(privileges: list[Privilege], data: st.DataObject) -> None:
    """Any permutation is consent; leaving one out never is."""
    check_privileges(data.draw(st.permutations(privileges)), privileges)
    if privileges:
        with pytest.raises(IncorrectPrivileges):
            check_privileges(privileges[1:], privileges)
