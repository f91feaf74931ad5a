"""The head that comes again: compared, never misread."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.route.head import RepeatedHead, repeated_head

HEADERS = st.lists(st.tuples(st.sampled_from(["A", "Content-Typ", "X"]), st.text("ab 1:", max_size=6)), max_size=3)


@given(
    before=HEADERS,
    after=HEADERS,
    body=st.binary(max_size=40),
    other=st.binary(max_size=120),
    noise=st.binary(max_size=3),
)
def test_a_repeated_head_is_never_misread(
    before: list[tuple[str, str]], after: list[tuple[str, str]], body: bytes, other: bytes, noise: bytes
) -> None:
    """Where a body is found, the message is the head with that very length and that body; others are left alone."""

    def message(content: bytes) -> bytes:
        lines = [*(f"{n}: {v}" for n, v in before), f"Content-Length: {len(content)}", *(f"{n}: {v}" for n, v in after)]
        return "\r\n".join(["POST / HTTP/1.1", *lines, "", ""]).encode() + content

    def known() -> RepeatedHead:
        head = repeated_head(message(body))
        assert head is not None
        return head

    head = known()
    near = message(other), message(other) + noise, message(other)[:-1], noise + message(other), noise
    altered = tuple(data[:-1] + b"?" for data in near if data), tuple(b"?" + data[1:] for data in near if data)
    for data in (*near, *near, *altered[0], *near, *altered[1]):  # as long as one before, and not the same
        start = head.body_start(data)
        assert start == known().body_start(data)
        assert start in (0, data.find(b"\r\n\r\n") + 4)
        if start:
            assert data == message(data[start:])
    if len(str(len(other))) == len(str(len(other) + len(str(len(other))))):
        assert head.body_start(message(other))
