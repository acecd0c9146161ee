"""Content-Encoding comes off within a bound, and half a body is never taken for a whole one (I5)."""

from __future__ import annotations

import gzip

import pytest
import zstandard

from bridge.receiver.body import Refusal, decode

PLAIN = b'[{"label":"cat"}]' * 1000
LIMIT = len(PLAIN)
PACKED = {"gzip": gzip.compress(PLAIN), "zstd": zstandard.ZstdCompressor().compress(PLAIN)}


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_what_was_packed_comes_out(encoding: str) -> None:
    assert decode(PACKED[encoding], encoding, LIMIT) == PLAIN
    assert decode(PACKED[encoding], f" {encoding.upper()} ", LIMIT) == PLAIN


@pytest.mark.parametrize("encoding", ["", "identity"])
def test_what_was_not_packed_stays(encoding: str) -> None:
    assert decode(PLAIN, encoding, LIMIT) == PLAIN


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_several_frames_are_one_body(encoding: str) -> None:
    assert decode(PACKED[encoding] * 2, encoding, 2 * LIMIT) == PLAIN * 2


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_body_cut_anywhere_is_refused(encoding: str) -> None:
    for length in range(1, len(PACKED[encoding])):
        found = decode(PACKED[encoding][:length], encoding, LIMIT)
        assert isinstance(found, Refusal), length
        assert found.status_code == 400


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_rubbish_is_refused(encoding: str) -> None:
    for rubbish in (PLAIN, PACKED[encoding] + b"rubbish and more"):
        found = decode(rubbish, encoding, LIMIT)
        assert isinstance(found, Refusal)
        assert found.status_code == 400


@pytest.mark.parametrize("encoding", ["", "gzip", "zstd"])
def test_one_byte_over_the_bound_is_too_large(encoding: str) -> None:
    found = decode(PACKED.get(encoding, PLAIN), encoding, LIMIT - 1)
    assert isinstance(found, Refusal)
    assert found.status_code == 413


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress], ids=["gzip", "zstd"])
def test_a_bomb_is_defused_long_before_it_is_out(pack: object) -> None:
    assert callable(pack)
    found = decode(pack(bytes(64 << 20)), "gzip" if pack is gzip.compress else "zstd", 1000)
    assert isinstance(found, Refusal)
    assert found.status_code == 413


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip"])
def test_an_unknown_encoding_is_refused_with_what_would_be_right(encoding: str) -> None:
    found = decode(PLAIN, encoding, LIMIT)
    assert isinstance(found, Refusal)
    assert found.status_code == 415
    assert "zstd" in found.error
