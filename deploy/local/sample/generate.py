"""Writes traffic.ndjson and expected.json from the stories: `python -m deploy.local.sample.generate`.

A line of traffic.ndjson is one request: its `round` (lines of a round go out in any order, rounds one after the other),
the `story` it is of, and one of

- `get`: a path of the gateway, asked with the user agent `agent`; `keep` names the click id that the answer hands out;
- `post`: a path of the gateway, with the JSON `body`, or with `text` as it is;
- `batch`: records for RecordBatch; `stream`: the requests of a RecordStream, each a list of records;
- `x`: what the local X does from now on with the conversions of a device, by its hashed id. Nothing is sent.

Before a line is sent, `<-3600>` in it becomes the time an hour before the start in seconds since 1970 (`<-3600 ms>` in
milliseconds, `<-3600 iso>` as ISO 8601), `"@-3600"` the same as a number, and `<click NAME>` a click id that was kept.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.local.sample.book import Book, Json, Story
from deploy.local.sample.stories import LAST, tell

SEED = 20_260_101
TRAFFIC = Path(__file__).with_name("traffic.ndjson")
EXPECTED = Path(__file__).with_name("expected.json")
_ARRAY, _BATCH, _REQUEST = 20, 40, 10  # records of one array, batch, request of a stream


def generate() -> tuple[str, str]:
    """Returns the text of both files; the same every time."""
    book = Book(SEED)
    tell(book)
    last_round = 1 + max(sending["round"] for sending in book.sendings)
    for number, (app, record_id) in enumerate(LAST.items()):
        story = Story(book, "last", app, number)
        story.round = last_round
        story.event("Registration", "UNATTRIBUTED", record_id=record_id, reason="EVENT_NOT_SELECTED")
    rounds = defaultdict(list)
    for sending in book.sendings:
        rounds[sending.pop("round")].append(sending)
    lines = [{"round": number} | line for number in sorted(rounds) for line in _lines(rounds[number])]
    expected = {
        name: dict(sorted(getattr(book, name).items()))
        for name in ("sent", "logged", "refused", "decisions", "deliveries")
    }
    traffic = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return traffic, json.dumps(expected, indent=1) + "\n"


def _lines(sendings: list[Json]) -> Iterator[Json]:
    """Returns the requests of a round: some senders put many records into one."""
    in_arrays: list[Any] = []
    over_grpc: list[Any] = []
    for sending in sendings:
        if "record" in sending:
            over_grpc.append(sending["record"])
        elif "json" in sending and int(sending["story"].rpartition("/")[2]) % 10 in (2, 6, 7):
            in_arrays.append(sending["json"])
        elif "json" in sending:
            yield {"story": sending["story"], "post": "/track/json", "body": sending["json"]}
        else:
            yield sending
    for some in _parts(in_arrays, _ARRAY):
        yield {"post": "/track/json", "body": some}
    for number, some in enumerate(_parts(over_grpc, _BATCH)):
        yield {"stream": _parts(some, _REQUEST)} if number % 2 else {"batch": some}


def _parts(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def main() -> None:
    """Writes both files."""
    traffic, expected = generate()
    TRAFFIC.write_text(traffic, encoding="utf-8")
    EXPECTED.write_text(expected, encoding="utf-8")


if __name__ == "__main__":
    main()
