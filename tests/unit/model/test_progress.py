"""Lines of the streams (REF 1.5)."""

import pytest

from pluginsvc.model.digest import Digest
from pluginsvc.model.progress import Aux, Line, ProgressDetail, encode_line

DIGEST = Digest.of(b"")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (Line(status="Pulling from a/b", id="latest"), '{"status":"Pulling from a/b","id":"latest"}'),
        (Line(status=f"Digest: {DIGEST}"), f'{{"status":"Digest: {DIGEST}"}}'),
        (Line.step("Waiting", "abc"), '{"status":"Waiting","id":"abc","progressDetail":{}}'),
        (
            Line.step("Downloading", "abc", current=5, total=9),
            '{"status":"Downloading","id":"abc","progressDetail":{"current":5,"total":9}}',
        ),
        (
            Line.failure("incorrect privileges"),
            '{"error":"incorrect privileges","errorDetail":{"message":"incorrect privileges"}}',
        ),
        (
            Line(progress_detail=ProgressDetail(), aux=Aux(tag="latest", digest=DIGEST, size=414)),
            f'{{"progressDetail":{{}},"aux":{{"Tag":"latest","Digest":"{DIGEST}","Size":414}}}}',
        ),
    ],
)
def test_lines_are_golden(line: Line, text: str) -> None:
    """Each kind of line has exactly the wire's members and ends with CRLF; a digest is its text."""
    assert encode_line(line).decode() == text + "\r\n"
