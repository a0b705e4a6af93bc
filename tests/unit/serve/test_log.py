import io
import json
import logging
import re

from fastdlrm.serve.log import EventLog, LogBridge


def test_an_event_is_one_line_of_json():
    stream = io.StringIO()
    log = EventLog(stream)
    log("ready", models=["shop/1"], seconds=0.5)
    log("worker_died", level="error", pid=7)
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert list(first) == ["time", "level", "event", "models", "seconds"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert (second["level"], second["event"], second["pid"]) == ("error", "worker_died", 7)


def test_libraries_warnings_come_with_their_traceback():
    stream = io.StringIO()
    logger = logging.Logger("library")
    logger.addHandler(LogBridge(EventLog(stream)))
    logger.info("not this")
    try:
        int("broken")
    except ValueError:
        logger.exception("it failed\n")
    (line,) = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (line["source"], line["level"], line["message"]) == ("library", "error", "it failed")
    assert "ValueError: invalid literal" in line["trace"]
