"""Visitors of links that are not persons: link previews, crawlers and monitors, known by their user agents (A9).

The list is a package's, which is kept up to date; its 1,500 patterns are searched for in a few microseconds, all at
once.
"""

import re
from functools import cache, lru_cache

from crawleruseragents import CRAWLER_USER_AGENTS_DATA
from ua_parser.core import Domain, Matcher, UserAgent
from ua_parser.lazy import UserAgentMatcher
from ua_parser.regex import Resolver

_NO_BOTS = "http-library"
"""OURS: the servers of networks ping with such libraries, and apps show ads with them (okhttp)."""
_KINDS = {
    "social-preview": "a link preview of {}",
    "search-engine": "the search engine's crawler {}",
    "monitoring": "the monitor {}",
    "ai-crawler": "the AI crawler {}",
    "feed-reader": "the feed reader {}",
    "browser-automation": "the automated browser {}",
}
_PHONE = re.compile(r"\((?:Linux; (?:U; )?Android|iPhone|iPad|iPod)")
_SAYS_SO = re.compile(r"bot|crawl|spider|preview|compatible;|https?:", re.IGNORECASE)


@lru_cache(maxsize=16_384)
def find_bot(user_agent: str) -> str | None:
    """Returns words for the bot that a user agent is of, as "a link preview of WhatsApp"; None for a person's.

    OURS: what names a phone and does not say itself that it is a robot is a person's. The list is made from logs of
    websites, and has held builds of Android and the browser inside of Facebook's app.
    """
    found = _list()(user_agent, Domain.USER_AGENT).user_agent
    if found is None or (_PHONE.search(user_agent) and not _SAYS_SO.search(user_agent)):
        return None
    bot = CRAWLER_USER_AGENTS_DATA[int(found.family)]
    named = re.search(bot["pattern"], user_agent)
    words = next((_KINDS[tag] for tag in bot["tags"] if tag in _KINDS), "the crawler {}")
    return words.format(named[0].strip(" /;:()") if named else bot["pattern"])


@cache
def _list() -> Resolver:
    """Returns what finds the first pattern of the list in a user agent, by its number."""
    bots: list[Matcher[UserAgent]] = [
        UserAgentMatcher(bot["pattern"], str(number))
        for number, bot in enumerate(CRAWLER_USER_AGENTS_DATA)
        if _NO_BOTS not in bot["tags"]
    ]
    return Resolver((bots, [], []))
