"""Frames are sorted into requests, and every byte of them is counted once."""

import struct

from simulations.studies.trace import Exchange, Trace, by_round

CLIENT, SERVER = 40_000, 8_000


def _frame(data, *, sent, client=CLIENT):
    ports = (client, SERVER) if sent else (SERVER, client)
    tcp = struct.pack(">HHIIBBHHH", *ports, 0, 0, 8 << 4, 0, 0, 0, 0) + bytes(12)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp) + len(data), 0, 0, 64, 6, 0,
                     bytes(4), bytes(4))  # fmt: skip
    return bytes(12) + b"\x08\x00" + ip + tcp + data


def _feed(frames):
    trace = Trace()
    for when, (data, sent, client) in enumerate(frames):
        trace.add(_frame(data, sent=sent, client=client), sent=sent, when=float(when))
    return trace.exchanges


def test_requests_on_two_connections_are_kept_apart():
    head, other = b"POST /v1/a HTTP/1.1\r\nx: y\r\n\r\n", b"POST /v1/b HTTP/1.1\r\n\r\n"
    found = _feed(
        [
            (b"", True, 1),
            (head + b"body", True, 1),
            (other, True, 2),
            (b"HTTP/1.1 200 OK\r\nserv", False, 1),
            (b"er: z\r\n\r\nPOST in the body", False, 1),
            (b"HTTP/1.1 200 OK\r\n\r\n", False, 2),
            (b"", True, 1),
        ]
    )
    assert [exchange.path for exchange in found] == ["connection", "/v1/a", "/v1/b"]
    opened, first, second = found
    assert (opened.up, opened.http, opened.packets) == (66, 0, 1)
    answer = len(b"HTTP/1.1 200 OK\r\nserver: z\r\n\r\n")
    assert (first.http, first.body) == (len(head) + answer, 4 + 16)
    assert (first.up, first.packets) == (2 * 66 + len(head) + 4, 4)
    assert (first.began, first.answered) == (1.0, 4.0)
    assert second.down == 66 + 19


def test_padding_and_other_protocols_are_no_data():
    trace = Trace()
    trace.add(_frame(b"", sent=True) + bytes(6), sent=True, when=0.0)
    trace.add(bytes(12) + b"\x08\x06" + bytes(28), sent=False, when=1.0)
    assert [(found.path, found.body) for found in trace.exchanges] == [
        ("connection", 0), ("not TCP", 0)]  # fmt: skip


def test_a_round_is_from_reply_to_reply():
    def exchange(name, began, answered, up=100):
        return Exchange(f"/v1/fleet/{name}", began, answered, up=up, down=10, packets=2)

    one = [("push-messages", 0, 1), *[("push-object", 1, 3)] * 3, ("pull-messages", 3, 4),
           ("pull-messages", 6, 7), *[("pull-object", 7, 9)] * 3]  # fmt: skip
    frames = [exchange(name, began + 20 * n, end + 20 * n) for n in range(3)
              for name, began, end in one]  # fmt: skip
    found = by_round(frames)
    assert found["seconds"] == {"push": 3, "wait": 4, "pull": 2, "work": 11}
    assert found["requests"]["pull-messages"]["count"] == 2
    assert found["requests"]["pull-messages"]["up"] == 200


def test_a_question_whether_a_client_is_idle_makes_no_round():
    def exchange(name, began, answered):
        return Exchange(f"/v1/fleet/{name}", began, answered)

    def round_(began):
        sent = [("push-messages", 0, 1), *[("push-object", 1, 3)] * 3]
        asked = [("pull-object", 4, 5)] * 2 + [("push-messages", 5, 6)]
        told = [("push-object", 6, 7)] * 2
        fetched = [("pull-object", 9, 11)] * 3
        parts = [*sent, *asked, *told, *fetched]
        return [exchange(name, began + first, began + last) for name, first, last in parts]

    found = by_round([*round_(0), *round_(20), exchange("push-messages", 40, 41)])
    assert found["seconds"] == {"push": 3, "wait": 6, "pull": 2, "work": 9}
    assert found["requests"]["push-object"]["count"] == 5
