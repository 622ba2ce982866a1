"""JSON logs: one line an event, events are fixed words `noun.verb`, and the request id is on every line.

Never logged: device ids, IP addresses, tokens, full URLs, bodies. So tracebacks show no local variables.
"""

import logging
import sys

import structlog

REQUEST_ID_KEY = "request_id"


def configure_logging(service: str, level: str = "info") -> None:
    """Sets up structlog and the standard library's logging for a process. Lines go to stderr."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
            ),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    # Libraries log to the standard library; only their warnings matter, as lines of the same shape.
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward()], force=True)


class _Forward(logging.Handler):
    """Handler that passes the standard library's records on to structlog, without local variables."""

    def emit(self, record: logging.LogRecord) -> None:
        # A library's warning is about something it tries again: its traceback helps nobody.
        exc_info = record.exc_info if record.levelno >= logging.ERROR else None
        structlog.get_logger().log(
            record.levelno, "library.logged", logger=record.name, message=record.getMessage(), exc_info=exc_info
        )
