"""References: REF 3.1's table row by row, and docker-image-py as the oracle for everything else."""

import string

import pytest
from docker_image import reference as oracle
from docker_image.digest import InvalidDigest as OracleInvalidDigest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from pluginsvc.errors import InvalidParameter
from pluginsvc.model.reference import InvalidReference, Reference

SHA = "sha256:" + "ab" * 32
HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("foo", "docker.io/library/foo:latest", "foo:latest"),
        ("foo:1", "docker.io/library/foo:1", "foo:1"),
        ("a/b", "docker.io/a/b:latest", "a/b:latest"),
        ("library/foo", "docker.io/library/foo:latest", "foo:latest"),
        ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("docker.io/foo", "docker.io/library/foo:latest", "foo:latest"),
        ("docker.io/zed/q:1", "docker.io/zed/q:1", "zed/q:1"),
        ("index.docker.io/x", "docker.io/library/x:latest", "x:latest"),
        ("index.docker.io/a/x", "docker.io/a/x:latest", "a/x:latest"),
        ("example.org/x", "example.org/x:latest", "example.org/x:latest"),
        ("host:5000/x", "host:5000/x:latest", "host:5000/x:latest"),
        ("host:5000/x:2", "host:5000/x:2", "host:5000/x:2"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("HOST/x", "HOST/x:latest", "HOST/x:latest"),
        ("127.0.0.1:5055/foo/reg", "127.0.0.1:5055/foo/reg:latest", "127.0.0.1:5055/foo/reg:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
        ("localhost", "docker.io/library/localhost:latest", "localhost:latest"),
        (f"n@{SHA}", f"docker.io/library/n@{SHA}", f"n@{SHA}"),
        (f"n:t@{SHA}", f"docker.io/library/n:t@{SHA}", f"n:t@{SHA}"),
        ("a.b_c__d---e/f", "a.b_c__d---e/f:latest", None),
        ("x/a.b_c__d---e", "docker.io/x/a.b_c__d---e:latest", "x/a.b_c__d---e:latest"),
        ("foo:" + "T" * 128, "docker.io/library/foo:" + "T" * 128, "foo:" + "T" * 128),
        ("a" * 63, f"docker.io/library/{'a' * 63}:latest", "a" * 63 + ":latest"),
    ],
)
def test_normalising(text: str, full: str, familiar: str | None) -> None:
    """A familiar text becomes the full form with a default tag, and goes back to its shortest form."""
    if familiar is None:
        # a host with an underscore is no host, whatever it looks like
        with pytest.raises(InvalidReference):
            Reference.parse(text)
        return
    found = Reference.parse(text).with_default_tag()
    assert (str(found), found.familiar) == (full, familiar)


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("foo", "foo:latest"),
        (f"n:t@{SHA}", "n:t"),
        (f"n@{SHA}", "n:latest"),
        ("docker.io/zed/q:1", "zed/q:1"),
        ("host:5000/a/b", "host:5000/a/b:latest"),
    ],
)
def test_local_name(text: str, local: str) -> None:
    """The stored name is always familiar, with a tag and never with a digest."""
    assert Reference.parse(text).local_name() == local


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEX, f"invalid repository name ({HEX}), cannot specify 64-byte hexadecimal strings"),
        ("UPPER", "invalid reference format: repository name (library/UPPER) must be lowercase"),
        ("a/Upper:1", "invalid reference format: repository name (a/Upper) must be lowercase"),
        ("host.io/Upper", "invalid reference format: repository name (Upper) must be lowercase"),
        ("a" * 248 + "/" + "b" * 7, "repository name must not be more than 255 characters"),
    ],
)
def test_refusals_with_a_text_of_their_own(text: str, message: str) -> None:
    """The refusals that Docker words specially are worded so."""
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    assert str(caught.value) == message
    assert isinstance(caught.value, InvalidParameter)


@pytest.mark.parametrize(
    "text",
    ["", " ", "foo ", " foo", "foo\n", "foo:", ":x", "foo@", "foo@sha256", "foo@sha256:abc", f"foo@md5:{'a' * 32}",
     f"foo@sha256:{'AB' * 32}", "foo:" + "t" * 129, "foo:.t", "foo:-t", "a//b", "/a", "a/", "-a", "a-", "a___b", "a..b",
     ".a", "a/../b", "../a", "http://a/b", "a\0b", "ä", "foo:ä", "foo:١", "a:1:2", "host:port/x", "[::1]x/y", "a@b",
     "a b/c", "foo%2fbar", "%", "\ud800"],
)  # fmt: skip
def test_malformed(text: str) -> None:
    """Everything else that is malformed is an invalid reference format."""
    with pytest.raises(InvalidReference, match=r"^invalid reference format$"):
        Reference.parse(text)


COMPONENT = st.from_regex(r"[a-z0-9]{1,4}(?:(?:\.|_|__|-{1,2})[a-z0-9]{1,3}){0,2}", fullmatch=True)
HOST = st.sampled_from(["docker.io", "index.docker.io", "localhost", "h.io", "h:5", "Host", "[fe80::1]", "[::1]:50"])
NEARLY = st.builds(
    "".join,
    st.tuples(
        st.just("") | HOST.map("{}/".format) | COMPONENT.map("{}/".format),
        COMPONENT | st.from_regex(r"[a-zA-Z0-9._/-]{0,9}", fullmatch=True),
        st.just("") | st.from_regex(r":[A-Za-z0-9._-]{0,6}", fullmatch=True),
        st.just("") | st.just(f"@{SHA}") | st.from_regex(r"@[a-z0-9+]{1,6}:[0-9a-fA-F]{30,34}", fullmatch=True),
    ),
)
NOISE = st.text(alphabet=string.ascii_letters + string.digits + "./:@_-[]", max_size=24)


@settings(max_examples=800, deadline=None)
@given(NEARLY | NOISE)
def test_agrees_with_the_oracle(text: str) -> None:
    """What docker-image-py accepts we accept with the same parts, and what it refuses we refuse."""
    try:
        expected = oracle.Reference.parse_normalized_named(text)
    except (oracle.InvalidReference, OracleInvalidDigest):
        expected = None
    try:
        found = Reference.parse(text)
    except InvalidReference:
        found = None
    if expected is not None and found is None:
        # the oracle takes any digest algorithm; we take those that we can verify
        assert expected.get("digest")
        assume(expected["digest"].startswith(("sha256:", "sha512:")) and expected["digest"].islower())
    if expected is None:
        assert found is None
        return
    assert found is not None
    domain, path = expected.split_hostname()
    assert (found.domain, found.path, found.tag, found.digest) == (
        domain,
        path,
        expected.get("tag"),
        expected.get("digest"),
    )
    assert found.familiar_name == oracle.NamedReference(expected["name"]).familiar_name()


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused(text: str) -> None:
    """No text, however odd, does anything but parse or raise the one error."""
    try:
        found = Reference.parse(text)
    except InvalidReference:
        return
    assert str(found).isascii()


@settings(deadline=None)
@given(NEARLY | NOISE)
def test_both_forms_parse_back(text: str) -> None:
    """The full form and the familiar form of a reference parse back to that reference."""
    try:
        found = Reference.parse(text)
    except InvalidReference:
        reject()
    assert Reference.parse(str(found)) == found
    assert Reference.parse(found.familiar) == found
    assert Reference.parse(found.local_name()).local_name() == found.local_name()
