"""What the first bytes of a packet or a file reveal without decoding. Pure functions on bytes; run anywhere.

They answer two questions. Can the decoder skip this packet because no other frame is predicted from it? Does the file
hold all the bytes that its container announces?
"""

from __future__ import annotations

from collections.abc import Iterator

Payload = bytes | memoryview

# --- H.264 and HEVC: unreferenced frames


def nal_length_bytes(codec: str, extradata: bytes | None) -> int:
    """Return the size of the length field before each NAL unit (MP4, Matroska), or 0 if there is none.

    There is none with start codes (MPEG-TS) and in other codecs. `extradata` is an avcC (ISO/IEC 14496-15, 5.3.3.1) or
    hvcC (8.3.3.1) record, or parameter sets with start codes.
    """
    place = {"h264": 4, "hevc": 21}.get(codec)
    if (
        place is None
        or not extradata
        or len(extradata) <= place
        or extradata[:3] == b"\0\0\1"
        or extradata[:4] == b"\0\0\0\1"
    ):
        return 0
    return (extradata[place] & 3) + 1


def nal_units(payload: Payload, length_bytes: int) -> Iterator[int]:
    """Yield the offset of the header of each NAL unit in a packet."""
    if length_bytes == 0:
        data = bytes(payload)
        at = data.find(b"\0\0\1")
        while 0 <= at < len(data) - 3:
            yield at + 3
            at = data.find(b"\0\0\1", at + 3)
        return
    at = 0
    while at + length_bytes < len(payload):
        yield at + length_bytes
        at += length_bytes + int.from_bytes(payload[at : at + length_bytes], "big")


def h264_is_unreferenced(payload: Payload, length_bytes: int) -> bool:
    """Return whether no frame is predicted from this one: all its slices have nal_ref_idc 0 (H.264, 7.4.1).

    Skipping such a picture changes no other picture: it takes no place among the references, and the frame number of
    what follows does not count it.
    """
    slices = [payload[at] for at in nal_units(payload, length_bytes) if 1 <= payload[at] & 0x1F <= 5]
    return bool(slices) and all(header & 0x60 == 0 for header in slices)


def h264_is_idr(payload: Payload, length_bytes: int) -> bool:
    """Return whether the packet is an IDR picture, which clears the decoder's reference frames."""
    return any(payload[at] & 0x1F == 5 for at in nal_units(payload, length_bytes))


def h264_starts_afresh(payload: Payload, length_bytes: int) -> bool:
    """Return whether decoding can start at this packet, which the container calls a keyframe.

    It can if the packet is an IDR picture or holds only I slices. Containers also flag the recovery points of periodic
    intra refresh, which are P pictures: decoding from there becomes correct only some frames later.
    """
    if h264_is_idr(payload, length_bytes):
        return True
    slices = [at for at in nal_units(payload, length_bytes) if payload[at] & 0x1F == 1]
    return all(_h264_slice_type(payload[at + 1 : at + 17]) % 5 in (2, 4) for at in slices)  # I and SI


def _h264_slice_type(head: Payload) -> int:
    """Return the second Exp-Golomb number of a slice header (H.264, 7.3.3), after its first macroblock's address."""
    bits = f"{int.from_bytes(head, 'big'):0{8 * len(head)}b}"
    at = value = 0
    for _ in range(2):
        zeros = bits.find("1", at) - at
        value = int(bits[at + zeros : at + 2 * zeros + 1] or "1", 2) - 1
        at += 2 * zeros + 1
    return value


def hevc_sublayer(payload: Payload, length_bytes: int) -> tuple[int, bool] | None:
    """Return (temporal sub-layer, whether it is a sub-layer non-reference picture) for a packet; None without slices.

    Types 0, 2, 4 ... 14 (TRAIL_N, TSA_N, STSA_N, RADL_N, RASL_N, and reserved ones) are not used by other pictures of
    the same sub-layer, but may be used by higher ones (HEVC, table 7-1), so only those in the highest can be skipped.
    """
    found = None
    for at in nal_units(payload, length_bytes):
        kind = payload[at] >> 1 & 0x3F
        if kind < 32 and at + 1 < len(payload):
            unreferenced = kind < 16 and kind % 2 == 0
            layer = (payload[at + 1] & 7) - 1
            found = (layer, unreferenced and (found is None or found[1]))
    return found


def vp8_is_shown(payload: Payload) -> bool:
    """Return whether a VP8 packet yields a picture: hidden reference frames have their own packets (RFC 6386, 9.1)."""
    return len(payload) > 0 and bool(payload[0] >> 4 & 1)


# --- containers: announced length


def announced_bytes(data: bytes) -> int:
    """Return the file length that the container's headers imply: more than len(data) if truncated; 0 if unknown.

    It is derived from the boxes of MP4/MOV, the RIFF chunk of AVI, and the segment of Matroska/WebM. MPEG-TS and
    similar formats do not say.
    """
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return _announced_by_boxes(data)
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return 8 + int.from_bytes(data[4:8], "little")
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return _announced_by_matroska(data)
    return 0


def _announced_by_boxes(data: bytes) -> int:
    """Return the furthest end of the boxes that hold frames or their index (ISO/IEC 14496-12, 4.2)."""
    at = furthest = 0
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0: to the end of the file; 2 to 7: invalid, left to the demuxer
            break
        if kind in (b"moov", b"mdat", b"moof"):
            furthest = at + size
        at += size
    return furthest


def _announced_by_matroska(data: bytes) -> int:
    """Return the end of the segment, after the EBML header (RFC 8794, 4); 0 if the writer left the size open."""
    header_size, at = _ebml_size(data, 4)
    at += header_size or 0
    if data[at : at + 4] != b"\x18\x53\x80\x67":
        return 0
    segment_size, at = _ebml_size(data, at + 4)
    return 0 if segment_size is None else at + segment_size


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """Read a variable-length size and return it with the offset after it; None for "unknown" (all ones)."""
    if at >= len(data) or data[at] == 0:
        return None, at
    length = 9 - data[at].bit_length()
    mask = (1 << 7 * length) - 1
    value = int.from_bytes(data[at : at + length], "big") & mask
    return (None if value == mask else value), at + length
