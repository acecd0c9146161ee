"""The sink's reading of posts, cut anywhere."""

from __future__ import annotations

from bridge.bench.posts import Post, PostSplitter, post

FIRST, SECOND = post(b"/", b"[1,2]\r\n\r\n", ""), post(b"/in", b"\x1f\x8b\x00", "gzip")
BOTH = [Post("", b"[1,2]\r\n\r\n"), Post("gzip", b"\x1f\x8b\x00")]


def test_two_posts_come_out_whole_wherever_the_stream_is_cut() -> None:
    stream = FIRST + SECOND
    for cut in range(len(stream) + 1):
        splitter = PostSplitter()
        assert splitter.feed(stream[:cut]) + splitter.feed(stream[cut:]) == BOTH, cut


def test_a_post_is_complete_with_its_last_byte_and_not_before() -> None:
    splitter = PostSplitter()
    assert splitter.feed(FIRST[:-1]) == []
    assert splitter.feed(FIRST[-1:]) == BOTH[:1]


def test_a_post_without_a_body_is_one() -> None:
    assert PostSplitter().feed(post(b"/", b"", "")) == [Post("", b"")]


def test_names_of_fields_may_be_written_in_any_case() -> None:
    request = b"POST / HTTP/1.1\r\ncontent-length: 2\r\nCONTENT-ENCODING:zstd\r\n\r\nok"
    assert PostSplitter().feed(request) == [Post("zstd", b"ok")]
